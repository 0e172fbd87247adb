"""safetensors files, shards and indexes: what is read, and what is refused and where."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import checkpoints
from checkpoints import safetensors_bytes, with_header, write_json
from phiggml.conversion import convert, plan_conversion
from phiggml.conversion.safetensors import SafetensorsFile
from phiggml.errors import FormatError, InputError, UnsupportedError

EIGHT = bytes(range(8))


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4), **more: Any) -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def one(**fields: Any) -> bytes:
    return with_header(json.dumps({"t": entry(**fields)}).encode(), EIGHT[:4])


def two(first: tuple[int, int], second: tuple[int, int]) -> bytes:
    header = {
        "a": entry(shape=[first[1] - first[0]], offsets=first),
        "t": entry(shape=[second[1] - second[0]], offsets=second),
    }
    return with_header(json.dumps(header).encode(), EIGHT)


ENTRY = json.dumps(entry())
# name -> bytes of the file, a word of the message
HOSTILE_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "at least 10"),
    "seven bytes": (bytes(7), "at least 10"),
    "length beyond the file": ((9).to_bytes(8, "little") + bytes(8), "only 8 follow"),
    "length 2^63": ((2**63).to_bytes(8, "little") + bytes(8), "at most 33554432"),
    "length 2^64-1": (b"\xff" * 8 + bytes(8), "at most 33554432"),
    "no JSON": (with_header(b"{'t': 1}"), "not valid JSON"),
    "no header": (with_header(b""), "not valid JSON"),
    "not UTF-8": (with_header(b'{"\xff": 1}'), "not valid JSON"),
    "a list": (with_header(b"[]"), "an object is needed"),
    "nested": (with_header(b'{"t":' + b"[" * 200_000), "not valid JSON"),
    "huge number": (with_header(b'{"t":' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "tensor twice": (with_header(f'{{"t":{ENTRY},"t":{ENTRY}}}'.encode(), EIGHT[:4]), "twice"),
    "field twice": (with_header(b'{"t":{"dtype":"U8","dtype":"I8"}}'), "twice"),
    "entry no object": (with_header(b'{"t":3}'), "'t'"),
    "no offsets": (with_header(b'{"t":{"dtype":"U8","shape":[4]}}', EIGHT[:4]), "'t'"),
    "one field more": (one(extra=1), "'t'"),
    "unknown dtype": (one(dtype="BF17"), "'BF17' is unknown"),
    "dtype no string": (one(dtype=["U8"]), "is unknown"),
    "size mismatch": (one(shape=[5]), "need 5 bytes"),
    "dtype mismatch": (one(dtype="F32"), "need 16 bytes"),
    "negative shape": (one(shape=[-4]), "shape"),
    "shape of true": (one(shape=[True, 4]), "shape"),
    "shape of floats": (one(shape=[4.0]), "shape"),
    "shape no list": (one(shape=4), "shape"),
    "shape of 17 axes": (one(shape=[1] * 16 + [4]), "shape"),
    "shape overflows": (one(shape=[2**62, 2**62, 4]), "need"),
    "offsets of one": (one(offsets=[0]), "data_offsets"),
    "negative offset": (one(offsets=[-4, 0]), "data_offsets"),
    "offsets reversed": (one(offsets=[4, 0]), "outside"),
    "beyond the end": (one(offsets=[4, 8]), "outside"),
    "offset 2^63": (one(offsets=[2**63, 2**63 + 4]), "data_offsets"),
    "overlap": (two((0, 5), (4, 8)), "overlap"),
    "hole between": (two((0, 3), (4, 8)), "a hole of 1 bytes"),
    "hole in front": (
        with_header(json.dumps({"t": entry(offsets=[4, 8])}).encode(), EIGHT),
        "hole",
    ),
    "hole at the end": (two((0, 3), (3, 7)), "1 bytes at the end"),
    "metadata of numbers": (safetensors_bytes({"t": ("U8", (4,), EIGHT[:4])}, {"n": 1}), "__meta"),
    "metadata no object": (safetensors_bytes({"t": ("U8", (4,), EIGHT[:4])}, "x"), "__metadata__"),
}


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_a_hostile_file_is_refused_by_name_and_place(name: str, tmp_path: Path) -> None:
    data, word = HOSTILE_FILES[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=word) as caught:
        SafetensorsFile(path)
    assert caught.value.path == str(path)
    assert caught.value.offset is not None and 0 <= caught.value.offset <= len(data)
    assert str(path) in str(caught.value)


def test_a_header_of_more_than_32_mib_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(((32 << 20) + 1).to_bytes(8, "little"))
    os.truncate(path, 300_000_000)
    with pytest.raises(FormatError, match="at most 33554432 are read"):
        SafetensorsFile(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = safetensors_bytes({"a": ("F32", (2, 2), bytes(16)), "b": ("U8", (3,), b"abc")})
    path = tmp_path / "model.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            SafetensorsFile(path)
    path.write_bytes(whole)
    assert set(SafetensorsFile(path).tensors) == {"a", "b"}


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    os.mkfifo(path)
    with pytest.raises(FormatError, match="regular file"):
        SafetensorsFile(path)


def test_data_are_copies_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes({"a": ("U8", (3,), b"abc"), "b": ("U8", (0, 9), b"")}))
    file = SafetensorsFile(path)
    whole, part = file.data(file.tensors["a"]), file.data(file.tensors["a"], 1, 3)
    assert (whole.tobytes(), part.tobytes()) == (b"abc", b"bc")
    assert file.data(file.tensors["b"]).size == 0
    for start, stop in ((-1, 2), (0, 4), (3, 2)):
        with pytest.raises(InputError, match="'a': bytes"):
            file.data(file.tensors["a"], start, stop)
    file.close()
    file.close()
    assert whole.tobytes() == b"abc"
    with pytest.raises(InputError, match="closed"):
        file.data(file.tensors["a"])


def test_a_file_truncated_meanwhile_raises_and_kills_nothing(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path / "model")
    script = """
        import os, sys
        from phiggml.conversion import plan_conversion
        from phiggml.errors import FormatError
        plan = plan_conversion(sys.argv[1])
        os.truncate(sys.argv[1] + "/model.safetensors", 4096)
        for tensor in plan.tensors:
            try:
                plan.read(tensor, 0, 1).sum()
            except FormatError as error:
                assert "made shorter" in str(error)
            else:
                sys.exit("read beyond the end")
        print("refused")
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


@pytest.mark.parametrize(("shards", "index"), [(1, False), (3, True), (3, False)])
def test_one_file_shards_and_shards_without_index_hold_the_same(
    shards: int, index: bool, tmp_path: Path
) -> None:
    values = checkpoints.write_checkpoint(tmp_path / "m", shards=shards, index=index)
    plan = plan_conversion(tmp_path / "m")
    assert len(plan.checkpoint.files) == shards
    for tensor in plan.tensors:
        assert len(tensor.sources) == 1
        rows = int(np.prod(tensor.shape[:-1]))
        read = plan.read(tensor, 0, rows).view("<f4").reshape(tensor.shape)
        np.testing.assert_array_equal(read, values[tensor.sources[0].name])


def index_of(folder: Path) -> Path:
    return folder / "model.safetensors.index.json"


def change_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads(index_of(folder).read_text())
    change(index["weight_map"])
    write_json(index_of(folder), index)


def write_text(path: Path, text: str) -> None:
    path.write_text(text)


def drop_shard(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").unlink()


BAD_INDEXES: dict[str, tuple[Callable[[Path], None], str]] = {
    "absent shard": (drop_shard, "model-00002-of-00003.safetensors, which is absent"),
    "absent tensor": (
        lambda f: change_index(f, lambda m: m.update(x="model-00001-of-00003.safetensors")),
        "'x' is not in model-00001-of-00003",
    ),
    "tensor not named": (
        lambda f: change_index(f, lambda m: m.__delitem__("lm_head.weight")),
        "lacks the tensor 'lm_head.weight'",
    ),
    "path upwards": (
        lambda f: change_index(f, lambda m: m.update({"lm_head.weight": "../x.safetensors"})),
        "names no safetensors file",
    ),
    "absolute path": (
        lambda f: change_index(f, lambda m: m.update({"lm_head.weight": "/x.safetensors"})),
        "names no safetensors file",
    ),
    "name of another kind": (
        lambda f: change_index(f, lambda m: m.update({"lm_head.weight": "pytorch_model.bin"})),
        "names no safetensors file",
    ),
    "number for a name": (
        lambda f: change_index(f, lambda m: m.update({"lm_head.weight": 3})),
        "names no safetensors file",
    ),
    "no weight_map": (lambda f: write_json(index_of(f), {}), "weight_map"),
    "weight_map a list": (lambda f: write_json(index_of(f), {"weight_map": []}), "weight_map"),
    "a key twice": (
        lambda f: write_text(index_of(f), '{"weight_map": {"a": "x", "a": "y"}}'),
        "twice",
    ),
}


@pytest.mark.parametrize("name", BAD_INDEXES)
def test_a_bad_index_is_refused(name: str, tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path, shards=3)
    break_it, word = BAD_INDEXES[name]
    break_it(tmp_path)
    with pytest.raises(FormatError, match=word) as caught:
        plan_conversion(tmp_path)
    assert caught.value.path is not None


def test_an_absent_shard_is_named_without_an_index_too(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path, shards=3, index=False)
    drop_shard(tmp_path)
    with pytest.raises(FormatError, match=r"model-00002-of-00003\.safetensors: this shard is abs"):
        plan_conversion(tmp_path)


def test_an_absent_shard_is_told_with_names_that_a_terminal_can_show(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path, shards=3)
    shard = "model-00009-of-00009.safetensors"
    change_index(tmp_path, lambda m: m.update({"\ud800\x1b[2J": shard}))
    with pytest.raises(FormatError, match=r"absent \(1 tensor: '\\ud800\\x1b\[2J'\)") as caught:
        plan_conversion(tmp_path)
    str(caught.value).encode("utf-8")


def test_shards_of_two_models_are_refused(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path, shards=3, index=False)
    stray = tmp_path / "model-00001-of-00002.safetensors"
    stray.write_bytes(safetensors_bytes({}))
    with pytest.raises(FormatError, match=r"holds shards of 00002 and of 00003\. Keep"):
        plan_conversion(tmp_path)


@pytest.mark.parametrize("index", [True, False])
def test_all_broken_shards_are_named_together(index: bool, tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path, shards=4, index=index)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    shards[2].write_bytes(b"")
    shards[3].unlink()
    with pytest.raises(FormatError) as caught:
        plan_conversion(tmp_path)
    head, *faults = str(caught.value).splitlines()
    assert head.endswith("3 faults:")
    for path, word in (
        (shards[0], "lie outside the"),
        (shards[2], "holds 0 bytes"),
        (shards[3], "absent"),
    ):
        assert sum(path.name in fault and word in fault for fault in faults) == 1


def test_many_absent_shards_are_found_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.write_checkpoint(tmp_path, shards=3)
    change_index(tmp_path, lambda m: m.update({f"t{i}": f"m{i}.safetensors" for i in range(5000)}))
    asked = []
    exists = Path.exists

    def counted(path: Path) -> bool:
        asked.append(path)
        return exists(path)

    monkeypatch.setattr(Path, "exists", counted)
    with pytest.raises(FormatError, match="5000 faults"):
        plan_conversion(tmp_path)
    assert len(asked) < 20


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path, shards=2, index=False)
    second = tmp_path / "model-00002-of-00002.safetensors"
    tensors = checkpoints.read_weights(tmp_path)
    second.write_bytes(safetensors_bytes(tensors))
    with pytest.raises(FormatError, match="lies in model-00001-of-00002"):
        plan_conversion(tmp_path)


class TouchWhenUnpickled:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.path),))


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    checkpoints.write_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    ran = tmp_path / "ran"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(TouchWhenUnpickled(str(ran))))
    with pytest.raises(UnsupportedError, match="safe_serialization=True"):
        convert(folder, tmp_path / "out.gguf")
    assert not ran.exists()


def test_code_in_a_checkpoint_is_never_imported(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    auto_map = {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    checkpoints.write_checkpoint(folder, changes={"auto_map": auto_map})
    ran = tmp_path / "ran"
    for name in ("modeling_phi3.py", "configuration_phi3.py", "sitecustomize.py"):
        (folder / name).write_text(f"open({str(ran)!r}, 'w')\n")
    convert(folder, tmp_path / "out.gguf")
    assert not ran.exists()
    assert "modeling_phi3" not in sys.modules


def test_a_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        convert(tmp_path / "nowhere", tmp_path / "out.gguf")


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FormatError, match="Give the folder"):
        convert(tmp_path / "model.safetensors", tmp_path / "out.gguf")


def test_a_folder_without_config_or_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="holds no config") as caught:
        plan_conversion(tmp_path)
    assert caught.value.path == str(tmp_path)
    write_json(tmp_path / "config.json", checkpoints.config())
    with pytest.raises(FormatError, match="holds no weights"):
        plan_conversion(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", '"x"', "\udcff", "[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(FormatError) as caught:
        plan_conversion(tmp_path)
    assert caught.value.path == str(tmp_path / "config.json")


def test_a_config_of_more_than_16_mib_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    os.truncate(tmp_path / "config.json", (16 << 20) + 1)
    with pytest.raises(FormatError, match="may hold 16777216"):
        plan_conversion(tmp_path)
