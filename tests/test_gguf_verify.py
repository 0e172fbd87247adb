"""verify_gguf: all faults of a file together, against hand-built files and ggml's own checks."""

from __future__ import annotations

import ctypes
import math
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import gguf_bytes as gb
import hostile_gguf
import phiggml as pg
from phiggml.gguf_verify import GGUFFault, verify_gguf
from phiggml.progress import Progress
from phiggml.runtime import library_folder

LAYOUTS = [gb.Layout(version, order) for version in (1, 2, 3) for order in "<>"]
BF16, MXFP4 = 30, 39


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def padded(data: bytes, alignment: int = 32) -> bytes:
    return data + bytes(-len(data) % alignment)


def faults_of(path: Path) -> list[tuple[str, int | None, str | None]]:
    """The first words of each fault, where it is, whose."""
    return [(fault.message, fault.offset, fault.tensor) for fault in verify_gguf(path).faults]


def one(path: Path) -> GGUFFault:
    (fault,) = verify_gguf(path).faults
    return fault


# structure ---------------------------------------------------------------------------------------


def test_real_models_are_sound(nano_f16: Path, nano_q4: Path, nano_f32: Path) -> None:
    for path in (nano_f16, nano_q4, nano_f32):
        found = verify_gguf(path)
        assert found.ok, str(found)
        assert (found.n_tensors, found.nbytes, found.data) == (27, path.stat().st_size, True)
        assert str(found) == f"{path}: sound (27 tensors, {found.nbytes:,} bytes)"


@pytest.mark.parametrize("g", LAYOUTS)
@pytest.mark.parametrize("alignment", [8, 4096])
def test_sound_files_of_all_layouts(g: gb.Layout, alignment: int, tmp_path: Path) -> None:
    pairs = [
        g.number("general.alignment", gb.UINT32, alignment),
        g.strings("words", ["", "two", "three"]),
        g.numbers("numbers", gb.INT16, [1, 2, 3]),
        g.pair("text", gb.STRING, g.string("some")),
    ]
    tensors = [
        g.tensor("a", (3, 2), gb.F32),
        g.tensor("b", (5,), gb.I8, offset=g_end(24, alignment)),
    ]
    data = padded(g.pack("6f", *range(6)), alignment) + padded(bytes(range(5)), alignment)
    path = written(tmp_path / "sound.gguf", g.gguf(pairs, tensors, data, alignment=alignment))
    assert verify_gguf(path).ok, str(verify_gguf(path))


def g_end(nbytes: int, alignment: int) -> int:
    return math.ceil(nbytes / alignment) * alignment


@pytest.mark.parametrize("g", LAYOUTS)
def test_faults_of_the_structure_are_told_together(g: gb.Layout, tmp_path: Path) -> None:
    pairs = [
        g.number("n", gb.UINT8, 1),
        g.number("n", gb.UINT8, 2),
        g.pair("truth", gb.BOOL, b"\7"),
    ]
    tensors = [
        g.tensor("wide", (33,), gb.Q8_0),
        g.tensor("skew", (4,), gb.F32, offset=4),
        g.tensor("far", (4,), gb.F32, offset=1 << 20),
    ]
    path = written(tmp_path / "bad.gguf", g.gguf(pairs, tensors, bytes(64)))
    start = len(g.header(0, 0))
    second, truth = start + len(pairs[0]), start + len(pairs[0] + pairs[1])
    first_tensor = start + len(b"".join(pairs))
    places = {
        "'n'": second,
        "'truth'": truth + len(pairs[2]) - 1,
        "'wide'": first_tensor + len(tensors[0]) - 12,
        "'skew'": first_tensor + len(tensors[0]),
        "'far'": first_tensor + len(tensors[0] + tensors[1]),
    }
    found = verify_gguf(path)
    assert len(found.faults) == len(places), str(found)
    for name, offset in places.items():
        (fault,) = (fault for fault in found.faults if name in fault.message)
        assert (fault.offset, fault.path) == (offset, str(path)), name
        assert str(fault) == f"byte {offset}: {fault.message}"
    assert (found.ok, found.data, found.n_tensors) == (False, False, 0)
    assert str(found).splitlines()[-1] == (
        f"{path}: 5 faults (0 tensors, {path.stat().st_size:,} bytes, not all numbers looked at)"
    )


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGML" + bytes(60), bytes(range(256))])
def test_what_is_no_gguf(content: bytes, tmp_path: Path) -> None:
    fault = one(written(tmp_path / "junk.gguf", content))
    assert fault.offset is not None
    assert fault.offset <= len(content)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verify_gguf(tmp_path / "absent.gguf")
    with pytest.raises(OSError, match=str(tmp_path)):
        verify_gguf(tmp_path)
    with pytest.raises(pg.InputError, match="NUL"):
        verify_gguf("a\0b")
    with pytest.raises(pg.InputError, match="threads"):
        verify_gguf(tmp_path, threads=0)
    with pytest.raises(pg.InputError, match="Download it"):
        verify_gguf("https://example.org/x.gguf")


# layout ------------------------------------------------------------------------------------------


class Params(ctypes.Structure):
    """struct gguf_init_params of ggml's gguf.h."""

    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


@pytest.fixture(scope="module")
def ggml() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_folder() / "libphiggml-ggml-base.so"))
    library.gguf_init_from_file.restype = ctypes.c_void_p
    library.gguf_init_from_file.argtypes = [ctypes.c_char_p, Params]
    library.gguf_free.argtypes = [ctypes.c_void_p]
    library.ggml_free.argtypes = [ctypes.c_void_p]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]
    return library


def ggml_reads(library: ctypes.CDLL, path: Path) -> bool:
    """Whether ggml's own reader takes the file, data included."""
    tensors = ctypes.c_void_p()
    params = Params(False, ctypes.cast(ctypes.pointer(tensors), ctypes.c_void_p))
    file = library.gguf_init_from_file(str(path).encode(), params)
    if file is not None:
        library.gguf_free(file)
        library.ggml_free(tensors)
    return file is not None


def three_tensors(order: str, offsets: dict[str, int], data: bytes) -> bytes:
    tensors = [gb.tensor(name, (4,), gb.F32, offset=offsets[name]) for name in order]
    return gb.gguf([gb.number("n", gb.UINT8, 1)], tensors, data)


IN_ORDER = {"a": 0, "b": 32, "c": 64}


@pytest.mark.parametrize(
    ("order", "offsets", "nbytes", "faulty", "refused"),
    [
        ("abc", IN_ORDER, 96, [], False),
        ("abc", {"a": 0, "b": 64, "c": 96}, 128, [("b", 64)], True),
        ("abc", {"a": 32, "b": 64, "c": 96}, 128, [("a", 32)], True),
        ("bac", {"a": 0, "b": 32, "c": 64}, 96, [("b", 32), ("a", 0), ("c", 64)], True),
        ("abc", IN_ORDER, 80, [(None, 80)], True),
        ("abc", IN_ORDER, 99, [(None, 96)], False),
    ],
    ids=["sound", "gap", "gap first", "order", "cut padding", "trailing"],
)
def test_places_of_data(
    ggml: ctypes.CDLL,
    tmp_path: Path,
    order: str,
    offsets: dict[str, int],
    nbytes: int,
    faulty: list[tuple[str | None, int]],
    refused: bool,
) -> None:
    path = written(tmp_path / "x.gguf", three_tensors(order, offsets, bytes(nbytes)))
    start = path.stat().st_size - nbytes
    found = verify_gguf(path)
    places = [(fault.tensor, fault.offset) for fault in found.faults]
    assert places == [(name, start + offset) for name, offset in faulty], str(found)
    assert ggml_reads(ggml, path) is not refused
    assert (found.n_tensors, found.data) == (3, True)


@pytest.mark.parametrize("g", LAYOUTS)
def test_padding_that_is_not_zero(g: gb.Layout, tmp_path: Path) -> None:
    """In the header's padding, between tensors, and behind the last one; all told together."""
    pairs = [
        g.number("general.alignment", gb.UINT32, 64),
        g.strings("words", ["a", "bc"]),
        g.numbers("numbers", gb.UINT64, [1, 2]),
        g.pair("text", gb.STRING, g.string("t")),
    ]
    tensors = [g.tensor("a", (1, 3), gb.F32), g.tensor("b", (3,), gb.I8, offset=64)]
    head = len(g.header(0, 0) + b"".join(pairs + tensors))
    content = bytearray(g.gguf(pairs, tensors, bytes(128), alignment=64))
    start = len(content) - 128
    assert head < start
    path = tmp_path / "x.gguf"
    # The first and the last byte of each padding, and its neighbours, which are data.
    for first, stop in ((head, start), (start + 12, start + 64), (start + 67, start + 128)):
        for at in (first, stop - 1):
            spoilt = content.copy()
            spoilt[at] = 1
            fault = one(written(path, spoilt))
            assert (fault.offset, "not zero" in fault.message) == (at, True)
    content[start + 11] = content[start + 66] = 1
    assert verify_gguf(written(path, content)).ok
    for at in (head, start + 12, start + 67):
        content[at] = at % 255 + 1
    assert [offset for _, offset, _ in faults_of(written(path, content))] == [
        head,
        start + 12,
        start + 67,
    ]


def test_files_without_tensors(tmp_path: Path) -> None:
    head = gb.header(0, 1) + gb.number("n", gb.UINT8, 1)
    path = tmp_path / "x.gguf"
    for content in (head, gb.gguf([gb.number("n", gb.UINT8, 1)])):
        assert verify_gguf(written(path, content)).ok
    assert one(written(path, gb.gguf([gb.number("n", gb.UINT8, 1)], data=b"\0"))).offset == 64


def test_huge_alignment_takes_no_memory(tmp_path: Path) -> None:
    alignment = 1 << 28
    pairs = [gb.number("general.alignment", gb.UINT32, alignment)]
    path = tmp_path / "x.gguf"
    head = gb.header(1, 1) + pairs[0] + gb.tensor("t", (1,), gb.I8)
    with path.open("wb") as stream:
        stream.write(head)
        stream.truncate(alignment + 1)
    tracemalloc.start()
    fault = one(path)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert fault.offset == alignment + 1
    assert "padding" in fault.message


# numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("kind", "code", "nan", "infinity"),
    [
        (gb.F32, "I", 0x7FC00001, 0xFF800000),
        (gb.F16, "H", 0xFE01, 0x7C00),
        (BF16, "H", 0x7FFF, 0xFF80),
        (gb.F64, "Q", 0x7FF0000000000001, 0xFFF0000000000000),
    ],
)
def test_plain_numbers(
    order: str, kind: int, code: str, nan: int, infinity: int, tmp_path: Path
) -> None:
    g = gb.Layout(3, order)
    values = [0] * 2 * 3 * 8
    values[19], values[31], values[40] = nan, infinity, nan  # 19 = [0, 2, 3]
    data = g.pack(f"48{code}", *values)
    path = written(tmp_path / "x.gguf", g.gguf([], [g.tensor("t", (8, 3, 2), kind)], padded(data)))
    fault = one(path)
    assert fault.message.startswith(
        "tensor 't': 2 of its 48 numbers are NaN and 1 are infinite; the first is [0, 2, 3]."
    )
    size = struct.calcsize(code)
    start = path.stat().st_size - len(padded(data))
    assert (fault.offset, fault.tensor, fault.path) == (start + 19 * size, "t", str(path))


def test_integers_have_nothing_to_check(tmp_path: Path) -> None:
    data = padded(b"\xff" * 64)
    for kind in (gb.I8, gb.I32, gb.I64):
        size = 64 // {gb.I8: 1, gb.I32: 4, gb.I64: 8}[kind]
        path = written(tmp_path / "x.gguf", gb.gguf([], [gb.tensor("t", (size,), kind)], data))
        seen: list[Progress] = []
        assert verify_gguf(path, progress=seen.append).ok
        assert seen == [Progress("verify", 0, 0)]  # nothing is read


QUANTIZED = [t for t in pg.quant_types() if t.block_size > 1]


@pytest.mark.parametrize("type", QUANTIZED)
def test_random_blocks_against_ggml(type: pg.QuantType, ggml: ctypes.CDLL, tmp_path: Path) -> None:
    """ggml_validate_row_data, called on each block, says which scales are not finite."""
    rng = np.random.default_rng(type.id)
    blocks = rng.integers(0, 256, (3, 5, 8, type.block_bytes), dtype=np.uint8)
    if type == "MXFP4":
        blocks[..., 0] = np.where(rng.random(blocks.shape[:-1]) < 0.1, 0xFF, blocks[..., 0] % 0xFD)
    flat = blocks.reshape(-1, type.block_bytes)
    spoilt = [
        i
        for i, block in enumerate(flat)
        if not ggml.ggml_validate_row_data(type.id, block.tobytes(), type.block_bytes)
    ]
    assert spoilt or type == "NVFP4"  # of that one, every byte is a scale
    content = gb.gguf(
        [], [gb.tensor("t", (8 * type.block_size, 5, 3), type.id)], padded(flat.tobytes())
    )
    path = written(tmp_path / "x.gguf", content)
    found = verify_gguf(path, threads=2)
    if not spoilt:
        assert found.ok
        return
    (fault,) = found.faults
    row, column = divmod(spoilt[0], 8)
    assert fault.message.startswith(f"tensor 't': {len(spoilt)} of its 120 blocks have scales")
    assert f"the first is block {column} of row {row}." in fault.message
    start = path.stat().st_size - len(padded(flat.tobytes()))
    assert fault.offset == start + spoilt[0] * type.block_bytes


@pytest.mark.parametrize("scale", [0x7C00, 0xFC00, 0x7E00, 0xFC01])
@pytest.mark.parametrize(
    ("type", "offset"),
    # Where the struct of a block in ggml-common.h has a half-precision scale.
    [
        *(("Q4_0", 0), ("Q4_1", 2), ("Q8_0", 0), ("Q2_K", 80), ("Q2_K", 82), ("Q3_K", 108)),
        *(("Q4_K", 0), ("Q4_K", 2), ("Q6_K", 208), ("TQ1_0", 52), ("TQ2_0", 64)),
    ],
)
def test_scales_over_quants_of_zero(type: str, offset: int, scale: int, tmp_path: Path) -> None:
    """Infinity times nothing is NaN: such blocks are lost too."""
    quant_type = pg.QuantType(type)
    data = bytearray(4 * quant_type.block_bytes)
    ne = (2 * quant_type.block_size, 2)
    path = tmp_path / "x.gguf"
    tensors = [gb.tensor("t", ne, quant_type.id)]
    assert verify_gguf(written(path, gb.gguf([], tensors, padded(data)))).ok
    struct.pack_into("<H", data, 3 * quant_type.block_bytes + offset, scale)
    fault = one(written(path, gb.gguf([], tensors, padded(data))))
    assert "1 of its 4 blocks" in fault.message
    assert "block 1 of row 1." in fault.message


@pytest.mark.parametrize(
    ("type", "offset", "scale"),
    # block_q8_1 has two half-precision scales, block_q8_K one of single precision.
    [
        *(("Q8_1", offset, scale) for offset in (0, 2) for scale in (b"\0\x7c", b"\1\xfe")),
        ("Q8_K", 0, struct.pack("<f", -math.inf)),
        ("Q8_K", 0, struct.pack("<f", math.nan)),
    ],
)
def test_scales_of_types_that_are_no_numbers(
    type: str, offset: int, scale: bytes, tmp_path: Path
) -> None:
    quant_type = pg.QuantType(type)
    data = bytearray(b"\xff" * 6 * quant_type.block_bytes)  # sound quants, whose bits are NaN's
    for i in range(6):
        start = i * quant_type.block_bytes
        data[start : start + 4] = bytes(4)
    tensors = [gb.tensor("t", (3 * quant_type.block_size, 2), quant_type.id)]
    path = tmp_path / "x.gguf"
    assert verify_gguf(written(path, gb.gguf([], tensors, padded(data)))).ok
    at = 4 * quant_type.block_bytes + offset
    data[at : at + len(scale)] = scale
    fault = one(written(path, gb.gguf([], tensors, padded(data))))
    assert "1 of its 6 blocks have scales" in fault.message
    assert "block 1 of row 1." in fault.message


@pytest.mark.parametrize(("exponent", "quants", "ok"), [(0xFF, 0, False), (0xFE, 0x11, True)])
def test_exponents_of_mxfp4(exponent: int, quants: int, ok: bool, tmp_path: Path) -> None:
    """OCP MX: 0xFF is NaN, though ggml computes with it; 0xFE overflows with large quants only."""
    blocks = bytes([127, 0x77] + [0] * 15) + bytes([exponent] + [quants] * 16)
    content = gb.gguf([], [gb.tensor("t", (64,), MXFP4)], padded(blocks))
    assert verify_gguf(written(tmp_path / "x.gguf", content)).ok is ok
    large = bytes([127] * 17) + bytes([0xFE] + [0x77] * 16)
    content = gb.gguf([], [gb.tensor("t", (64,), MXFP4)], padded(large))
    assert "block 1 of row 0." in one(written(tmp_path / "x.gguf", content)).message


@pytest.mark.parametrize("type", ["F32", "Q8_0"])
def test_rows_longer_than_a_piece(type: str, tmp_path: Path) -> None:
    quant_type = pg.QuantType(type)
    n = (1 << 21) + 4096
    data = np.zeros((2, quant_type.row_bytes(n)), np.uint8)
    at = n - 1 - (n - 1) % quant_type.block_size  # the last block of the last row
    block = data[1, at // quant_type.block_size * quant_type.block_bytes :]
    block[: 4 if type == "F32" else 2] = 0xFF
    tensors = [gb.tensor("t", (n, 2), quant_type.id)]
    path = written(tmp_path / "x.gguf", gb.gguf([], tensors, padded(data.tobytes())))
    fault = one(path)
    place = f"[1, {n - 1}]" if type == "F32" else f"block {n // 32 - 1} of row 1"
    assert place in fault.message
    start = path.stat().st_size - len(padded(data.tobytes()))
    assert fault.offset == start + data.size - quant_type.block_bytes


def test_two_pieces_at_fault(tmp_path: Path) -> None:
    """The first fault of the first piece is told, and all are counted."""
    values = np.zeros((2049, 1024), np.float32)
    values[3, 4] = values[2048, 5] = np.nan
    values[1024, 0] = np.inf
    content = gb.gguf([], [gb.tensor("t", (1024, 2049), gb.F32)], values.tobytes())
    message = one(written(tmp_path / "x.gguf", content)).message
    assert "2 of its 2,098,176 numbers are NaN and 1 are infinite" in message
    assert "the first is [3, 4]." in message


def test_data_are_left_alone_when_told_so(tmp_path: Path) -> None:
    content = gb.gguf([], [gb.tensor("t", (8,), gb.F32)], b"\xff" * 32)
    path = written(tmp_path / "x.gguf", content)
    assert not verify_gguf(path).ok
    found = verify_gguf(path, data=False)
    assert (found.ok, found.data) == (True, False)


def test_big_endian_types_that_nobody_defines(tmp_path: Path) -> None:
    """Their numbers cannot be looked at, which is no fault, and is said."""
    g = gb.Layout(3, ">")
    iq4_nl = pg.QuantType("IQ4_NL")
    nan = g.pack("8I", *[0x7FC00000] * 8)
    tensors = [g.tensor("odd", (32,), iq4_nl.id), g.tensor("t", (8,), gb.F32, offset=32)]
    path = written(tmp_path / "x.gguf", g.gguf([], tensors, bytes(32) + nan))
    found = verify_gguf(path)
    assert [fault.tensor for fault in found.faults] == ["t"]
    assert not found.data


def test_progress_and_interruption(nano_f16: Path) -> None:
    seen: list[Progress] = []
    assert verify_gguf(nano_f16, progress=seen.append).ok
    with pg.GGUFFile(nano_f16) as file:
        total = sum(tensor.nbytes for tensor in file.tensors.values())
    assert seen[0] == Progress("verify", 0, total)
    assert seen[-1] == Progress("verify", total, total)
    assert [event.done for event in seen] == sorted(event.done for event in seen)

    def interrupt(event: Progress) -> None:
        if event.done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify_gguf(nano_f16, progress=interrupt)


# strangers' files --------------------------------------------------------------------------------


def n_tensors(path: Path) -> int | None:
    """As GGUFFile reads the file; None where it refuses it."""
    try:
        with pg.GGUFFile(path, follow_split=False) as file:
            return len(file.tensors)
    except pg.FormatError:
        return None


@pytest.mark.parametrize("g", LAYOUTS)
def test_hostile_files_have_faults_where_they_are_refused(g: gb.Layout, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for name, case in hostile_gguf.cases(g).items():
        case.write(path)
        found, expected = verify_gguf(path), n_tensors(path)
        assert found.n_tensors == (expected or 0), name
        assert not (found.ok and expected is None), name
        assert str(found).count("\n") == len(found.faults), name


def test_every_flip_and_truncation(tmp_path: Path) -> None:
    """What GGUFFile refuses has faults; nothing else is raised."""
    pairs = [gb.strings("s", ["x", "yy"]), gb.number("split.count", gb.UINT16, 1)]
    tensors = [gb.tensor("t", (8,), gb.F32), gb.tensor("u", (32,), gb.Q8_0, offset=32)]
    good = gb.gguf(pairs, tensors, bytes(96))
    path = tmp_path / "x-00001-of-00002.gguf"  # so that a flipped split.count makes it a part
    for i in range(len(good)):
        assert not verify_gguf(written(path, good[:i])).ok, i
        for mask in (3, 0x80):
            flipped = bytearray(good)
            flipped[i] ^= mask
            ok = verify_gguf(written(path, flipped)).ok
            assert not (ok and n_tensors(path) is None), (i, mask)
    assert verify_gguf(written(path, good)).ok
