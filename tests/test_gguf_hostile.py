"""Hostile containers: each ends in FormatError, or is read harmlessly; the process lives on."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest

import gguf_bytes as gb

SECONDS = 1.0
MEGABYTES = 100


def one_pair(pair: bytes) -> bytes:
    return gb.gguf([pair])


def one_tensor(ne: tuple[int, ...], kind: int = gb.F32, offset: int = 0, data: int = 64) -> bytes:
    return gb.gguf([], [gb.tensor("t", ne, kind, offset=offset)], bytes(data))


def two_tensors(first: int, second: int, data: int = 256) -> bytes:
    """Two tensors of 16 bytes at these offsets."""
    tensors = [gb.tensor(name, (4,), gb.F32, offset=o) for name, o in (("a", first), ("b", second))]
    return gb.gguf([], tensors, bytes(data))


def alignment(value: int, kind: int = gb.UINT32) -> bytes:
    tensors = [gb.tensor("t", (4,), gb.F32)]
    return gb.gguf([gb.number("general.alignment", kind, value)], tensors, bytes(64))


def long_string(length: int) -> bytes:
    return gb.header(0, 1) + gb.pair("k", gb.STRING, gb.size(length) + b"abc")


def long_array(kind: int, count: int, content: bytes = b"") -> bytes:
    return gb.header(0, 1) + gb.array("k", kind, count, content)


def nested(depth: int) -> bytes:
    levels = (struct.pack("<I", gb.ARRAY) + gb.size(1)) * depth
    innermost = struct.pack("<I", gb.UINT8) + gb.size(0)
    return gb.header(0, 1) + gb.pair("k", gb.ARRAY, levels + innermost)


def named(key: bytes) -> bytes:
    return one_pair(gb.pair(key, gb.UINT8, b"\1"))


def tensor_named(name: bytes) -> bytes:
    return gb.gguf([], [gb.tensor(name, (1,), gb.F32)], bytes(32))


KEY = gb.number("k", gb.UINT32, 1)

# What must be refused, and a piece of the sentence that says why.
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "magic"),
    "three bytes": (b"GGU", "magic"),
    "magic": (b"GGML" + gb.header(0, 0)[4:], "'GGUF'"),
    "version 0": (gb.header(0, 0, 0), "version is 0"),
    "version 4": (gb.header(0, 0, 4), "version is 4"),
    "version 2^31": (gb.header(0, 0, 2**31), "version is 2147483648"),
    "no counts": (gb.header(0, 0)[:8], "number of tensors"),
    "n_tensors 2^59+1": (gb.header(2**59 + 1, 0) + bytes(100), "claims 576460752303423489 tensors"),
    "n_tensors 2^63": (gb.header(2**63, 0) + bytes(100), "tensors"),
    "n_tensors -1": (gb.header(2**64 - 1, 0) + bytes(100), "tensors"),
    "n_tensors 2": (
        gb.gguf([], [gb.tensor("t", (1,), gb.F32)], b"").replace(gb.header(1, 0), gb.header(2, 0)),
        "tensors",
    ),
    "n_kv 2^59+1": (gb.header(0, 2**59 + 1) + bytes(100), "metadata keys"),
    "n_kv 2^63": (gb.header(0, 2**63) + bytes(100), "metadata keys"),
    "n_kv -1": (gb.header(0, 2**64 - 1) + bytes(100), "metadata keys"),
    "n_kv 2": (gb.header(0, 2) + KEY, "metadata key"),
    "24 bytes claim 1 GiB": (gb.header(0, 2**30 // 14), "metadata keys"),
    "n_dims 5": (one_tensor((1, 1, 1, 1, 1)), "5 dimensions"),
    "n_dims 100": (one_tensor((1,) * 100), "100 dimensions"),
    "n_dims 2^31": (
        gb.header(1, 0) + gb.string("t") + struct.pack("<I", 2**31) + bytes(64),
        "2147483648 dimensions",
    ),
    "ne 0": (one_tensor((4, 0)), "dimension 1 is 0"),
    "ne -1": (one_tensor((-1,)), "dimension 0 is -1"),
    "ne -2^63": (one_tensor((4, -(2**63))), "dimension 1 is -9223372036854775808"),
    "ne wraps to 2 bytes": (one_tensor((5124095576030431008,), gb.Q4_0), "larger than the file"),
    "ne wraps to -2": (one_tensor((2**63 - 1, 2, 1, 1), gb.I8), "larger than the file"),
    "ne wraps to 0": (one_tensor((2**62,), gb.F32), "larger than the file"),
    "ne wraps in the rows": (one_tensor((1, 2**32, 2**32), gb.I8), "larger than the file"),
    "ne no multiple of the block": (one_tensor((33,), gb.Q4_0), "no multiple of 32"),
    **{
        f"type id {kind}": (one_tensor((256,), kind, 0, 4096), "unknown")
        for kind in (-1, 4, 5, 31, 32, 33, 36, 37, 38, 43, 999, 2**31 - 1, -(2**31))
    },
    **{
        f"string of {length}": (long_string(length), "claims")
        for length in (2**64 - 1, 2**63, 2**63 - 1, 4, 2**30)
    },
    "key longer than the file": (gb.header(0, 1) + gb.size(2**40) + bytes(40), "claims"),
    "key of 65536 bytes": (named(b"k" * 65536), "1 to 65535"),
    "key empty": (named(b""), "1 to 65535"),
    "key with NUL": (named(b"general.alignment\0"), "NUL"),
    **{
        f"key of bytes {key.hex()}": (named(key), "UTF-8")
        for key in (
            b"\xff",
            b"a\x80",
            b"\xc0\xaf",
            b"\xc1\xbf",
            b"\xe0\x9f\xbf",
            b"\xed\xa0\x80",
            b"\xf0\x8f\xbf\xbf",
            b"\xf4\x90\x80\x80",
            b"\xf5\x80\x80\x80",
            b"\xe2\x82",
            b"a\xc3",
        )
    },
    "duplicate keys": (
        gb.gguf([KEY, gb.number("l", gb.UINT8, 1), KEY]),
        "key 'k': it appears twice",
    ),
    "value type 13": (one_pair(gb.pair("k", 13, bytes(16))), "value type is 13"),
    "value type -1": (one_pair(gb.pair("k", 2**32 - 1, bytes(16))), "value type is 4294967295"),
    "element type 13": (long_array(13, 1, bytes(16)), "element type is 13"),
    "array of 2^60 strings": (long_array(gb.STRING, 2**60), "elements"),
    "array of 2^63 u8, 49 bytes": (long_array(gb.UINT8, 2**63, bytes(8)), "elements"),
    "array of 2^61 u64": (long_array(gb.UINT64, 2**61, bytes(8)), "elements"),
    "array of 2^62 f32": (long_array(gb.FLOAT32, 2**62, bytes(8)), "elements"),
    "array of -1 u8": (long_array(gb.UINT8, 2**64 - 1, bytes(8)), "elements"),
    "array with a string too long": (
        long_array(gb.STRING, 3, gb.string("a") + gb.size(2**64 - 9) + bytes(64)),
        "claims",
    ),
    "array that ends early": (long_array(gb.STRING, 2, gb.string("a" * 20)), "file ends"),
    "arrays in an array": (nested(1), "array of arrays"),
    "arrays nested 3000 deep": (nested(3000), "array of arrays"),
    "bool of 2": (one_pair(gb.pair("k", gb.BOOL, b"\2")), "boolean is 2"),
    "bool of 255 in an array": (one_pair(gb.array("k", gb.BOOL, 3, b"\1\0\xff")), "boolean is 255"),
    **{f"alignment {v}": (alignment(v), "power of two") for v in (0, 3, 31, 2**32 - 1)},
    "alignment 2^31": (alignment(2**31), "beyond the file"),
    "alignment of INT32": (alignment(32, gb.INT32), "UINT32"),
    "alignment of UINT64": (alignment(32, gb.UINT64), "UINT32"),
    "alignment of strings": (
        gb.gguf([gb.strings("general.alignment", ["32"])]),
        "an array of STRING",
    ),
    "alignment an array": (
        gb.gguf([gb.array("general.alignment", gb.UINT32, 1, struct.pack("<I", 32))]),
        "an array of UINT32",
    ),
    "tensor name empty": (tensor_named(b""), "1 to 63"),
    "tensor name of 64 bytes": (tensor_named(b"t" * 64), "1 to 63"),
    "tensor name with NUL": (tensor_named(b"t\0"), "NUL"),
    "tensor name no UTF-8": (tensor_named(b"\xfe"), "UTF-8"),
    "duplicate tensor names": (
        gb.gguf([], [gb.tensor("t", (1,), gb.F32, offset=o) for o in (0, 32)], bytes(64)),
        "tensor 't': it appears twice",
    ),
    "offset beyond the end": (one_tensor((4,), offset=64), "beyond the file"),
    "offset that ends beyond": (one_tensor((13,), offset=32), "beyond the file"),
    "offset misaligned": (one_tensor((4,), offset=16), "no multiple of the alignment 32"),
    "offset 2^64-32": (one_tensor((4,), offset=2**64 - 32), "beyond the file"),
    "offset 2^63": (one_tensor((4,), offset=2**63), "beyond the file"),
    "offset that wraps with the size": (one_tensor((16,), offset=2**64 - 64), "beyond the file"),
    "tensors at one place": (two_tensors(32, 32), "tensor 'b': its data overlap"),
    "sums of padded sizes beyond 2^64": (
        gb.gguf(
            [gb.number("general.alignment", gb.UINT32, 2**31)],
            [gb.tensor(f"t{i}", (1,), gb.F32, offset=i * 2**62) for i in range(4)],
            bytes(64),
        ),
        "beyond the file",
    ),
    "no data": (gb.gguf([], [gb.tensor("t", (4,), gb.F32)]), "beyond the file"),
    "overlap by one block": (
        gb.gguf(
            [], [gb.tensor("a", (9,), gb.F32), gb.tensor("b", (4,), gb.F32, offset=32)], bytes(64)
        ),
        "tensor 'b': its data overlap those of tensor 'a'",
    ),
}

# What is odd, and harmless.
ACCEPTED: dict[str, bytes] = {
    "nothing in it": gb.header(0, 0),
    "bytes behind the header": gb.header(0, 0) + b"\xff" * 100,
    "empty string": one_pair(gb.pair("k", gb.STRING, gb.string(""))),
    "string no UTF-8": one_pair(gb.pair("k", gb.STRING, gb.string(b"\xff\xfe\0"))),
    "strings no UTF-8": one_pair(gb.strings("k", [b"\xff", b"", b"\xed\xa0\x80"])),
    "key of 65535 bytes": named(b"k" * 65535),
    "key at UTF-8's edges": named(
        "\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff".encode()
    ),
    "alignment 1": alignment(1),
    "alignment 2^31 without tensors": gb.gguf([gb.number("general.alignment", gb.UINT32, 2**31)]),
    "hole between tensors": two_tensors(0, 128),
    "tensors in reverse": two_tensors(64, 0),
    "tensor name of 63 bytes": tensor_named(b"t" * 63),
    "NaN everywhere": one_tensor((16,))[:-64] + b"\xff" * 64,
    "block of NaN scale": one_tensor((32,), gb.Q8_0)[:-64] + b"\xff" * 64,
}


def small_file() -> bytes:
    """A file of the gguf package, with each kind of value and five tensors."""
    path = Path("small.gguf")
    writer = gguf.GGUFWriter(path, "phi3")
    writer.add_name("small")
    writer.add_uint8("u8", 1)
    writer.add_int64("i64", -1)
    writer.add_float32("f32", 0.5)
    writer.add_bool("yes", True)
    writer.add_custom_alignment(16)
    writer.add_token_list(["<s>", "a", "ü"])
    writer.add_token_scores([0.0, -1.0, -2.0])
    writer.add_token_types([3, 1, 1])
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, 32)).astype(np.float32)
    writer.add_tensor("f32", weights[:, :3])
    writer.add_tensor("f16", weights.astype(np.float16))
    writer.add_tensor("i32", np.arange(5, dtype=np.int32))
    for kind in (gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0):
        writer.add_tensor(kind.name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


# Opens files and touches all that they hold. A line of JSON for each: the last names a death.
READER = """
    import json, pathlib, resource, sys, time
    from phiggml.errors import FormatError, PhiggmlError
    from phiggml.gguf import GGUFFile, GGUFStrings

    def touch(path):
        with GGUFFile(path) as f:
            repr(f)
            for key, value in f.metadata.items():
                f.metadata.exact(key)
                if isinstance(value, GGUFStrings):
                    list(value)
            for tensor in f.tensors.values():
                repr(tensor)
                int(tensor.data.sum())
                tensor.read_rows()
                try:
                    tensor.dequantize()
                except PhiggmlError:
                    pass

    def judge(path):
        started = time.perf_counter()
        verdict = {"outcome": "accepted"}
        try:
            touch(path)
        except FormatError as error:
            verdict = {
                "outcome": "FormatError", "message": str(error), "offset": error.offset,
                "path": error.path,
            }
        except Exception as error:
            verdict = {"outcome": type(error).__name__, "message": str(error)}
        return verdict | {"seconds": time.perf_counter() - started}

    def peak():
        # Not ru_maxrss: on Linux that begins with what the parent had when it forked.
        status = pathlib.Path("/proc/self/status")
        if not status.exists():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        (line,) = (l for l in status.read_text().splitlines() if l.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024

    def report(name, verdict):
        print(json.dumps(verdict | {"name": name}), flush=True)
"""


def run_reader(script: str, *arguments: object) -> dict[str, dict]:
    command = [sys.executable, "-c", textwrap.dedent(READER) + textwrap.dedent(script)]
    finished = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    lines = finished.stdout.splitlines()
    assert finished.returncode == 0, f"after {lines[-1:]}: {finished.stderr[-2000:]}"
    assert finished.stderr == ""
    return {verdict["name"]: verdict for verdict in map(json.loads, lines)}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory) -> dict[str, dict]:
    """What one process said about all cases, one after the other."""
    folder = tmp_path_factory.mktemp("hostile")
    contents = {name: content for name, (content, _) in REFUSED.items()} | ACCEPTED
    for i, content in enumerate(contents.values()):
        (folder / f"{i}.gguf").write_bytes(content)
    script = """
        for i in range(int(sys.argv[2])):
            before = peak()
            verdict = judge(f"{sys.argv[1]}/{i}.gguf")
            report(i, verdict | {"megabytes": peak() - before})
    """
    numbered = run_reader(script, folder, len(contents))
    return dict(zip(contents, numbered.values(), strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_refused(verdicts, name):
    content, sentence = REFUSED[name]
    verdict = verdicts[name]
    assert verdict["outcome"] == "FormatError", verdict
    assert sentence in verdict["message"]
    assert 0 <= verdict["offset"] <= len(content)
    assert verdict["path"].endswith(".gguf")


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(verdicts, name):
    assert verdicts[name]["outcome"] == "accepted", verdicts[name]


@pytest.mark.parametrize("name", [*REFUSED, *ACCEPTED])
def test_in_bounded_time_and_memory(verdicts, name):
    assert verdicts[name]["seconds"] < SECONDS
    assert verdicts[name]["megabytes"] < MEGABYTES


@dataclass(frozen=True)
class Small:
    path: Path
    content: bytes
    data_offset: int
    end: int  # of the last tensor, without its padding


@pytest.fixture
def small(tmp_path, monkeypatch) -> Small:
    monkeypatch.chdir(tmp_path)
    content = small_file()
    reader = gguf.GGUFReader("small.gguf")
    end = max(tensor.data_offset + tensor.n_bytes for tensor in reader.tensors)
    return Small(tmp_path / "small.gguf", content, reader.data_offset, int(end))


def test_every_truncation_of_a_small_file_at_every_byte(small):
    script = """
        path = pathlib.Path(sys.argv[1])
        for size in range(path.stat().st_size - 1, -1, -1):
            with path.open("r+b") as stream:
                stream.truncate(size)
            report(size, judge(path))
        report("peak", {"megabytes": peak()})
    """
    verdicts = run_reader(script, small.path)
    megabytes = verdicts.pop("peak")["megabytes"]
    assert len(verdicts) == len(small.content) > 900
    for size, verdict in verdicts.items():
        if size >= small.end:  # only padding is missing
            assert verdict["outcome"] == "accepted", verdict
        else:
            assert verdict["outcome"] == "FormatError", verdict
            assert 0 <= verdict["offset"] <= size
        assert verdict["seconds"] < SECONDS
    assert megabytes < MEGABYTES + 100  # numpy and the package are in it


def test_every_flip_in_the_header_of_a_small_file(small):
    script = """
        path, end = pathlib.Path(sys.argv[1]), int(sys.argv[2])
        content = path.read_bytes()
        for i in range(end):
            for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
                with path.open("r+b") as stream:
                    stream.seek(i)
                    stream.write(bytes([content[i] ^ mask]))
                report(f"{i} {mask}", judge(path))
            with path.open("r+b") as stream:
                stream.write(content)
        report("whole", judge(path) | {"megabytes": peak()})
    """
    verdicts = run_reader(script, small.path, small.data_offset)
    whole = verdicts.pop("whole")
    assert whole["outcome"] == "accepted"
    assert whole["megabytes"] < MEGABYTES + 100
    assert len(verdicts) == 9 * small.data_offset
    outcomes = {verdict["outcome"] for verdict in verdicts.values()}
    assert outcomes == {"FormatError", "accepted"}
    for verdict in verdicts.values():
        assert verdict["outcome"] == "accepted" or verdict["offset"] <= len(small.content)
        assert verdict["seconds"] < SECONDS


def test_a_crowd_of_keys_and_tensors_takes_time_in_proportion(tmp_path):
    """Names that share a long beginning, which cost a sort the most, and many of them."""
    keys = [gb.number("k" * 500 + str(i), gb.UINT8, 1) for i in range(20000)]
    tensors = [gb.tensor("t" * 50 + str(i), (8,), gb.F32, offset=32 * i) for i in range(20000)]
    path = tmp_path / "crowd.gguf"
    path.write_bytes(gb.gguf(keys, tensors, bytes(32 * 20000)))
    script = """
        started = time.perf_counter()
        GGUFFile(sys.argv[1])
        report("open", {"seconds": time.perf_counter() - started})
    """
    assert run_reader(script, path)["open"]["seconds"] < SECONDS
