"""How a checkpoint's weights are read: in little memory, and none that change meanwhile."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

import checkpoints
from phiggml.conversion import convert, plan_conversion
from phiggml.errors import FormatError
from phiggml.quantization import Progress
from test_interrupt import interrupted

WIDE = 1 << 17
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def values() -> dict[str, npt.NDArray[np.uint16]]:
    """Bits of bfloat16 from 2**-7 to 1, 50 MB of them."""
    rng = np.random.default_rng(1)
    return {
        name: rng.integers(0x3C00, 0x3F80, shape, np.uint16)
        for name, shape in checkpoints.shapes(feed_forward=WIDE).items()
    }


@pytest.fixture(scope="module")
def large(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, npt.NDArray[np.uint16]]
) -> Path:
    """A checkpoint of these values."""
    folder = tmp_path_factory.mktemp("large")
    checkpoints.write_json(folder / "config.json", checkpoints.config(intermediate_size=WIDE))
    checkpoints.write_tokenizer(folder)
    stored = {name: ("BF16", bits.shape, bits.tobytes()) for name, bits in values.items()}
    checkpoints.write_weights(folder, stored, shards=2)
    return folder


def run(script: str, *arguments: Path) -> Any:
    """What a process prints as JSON."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_weights_do_not_stay_in_memory(large: Path, tmp_path: Path) -> None:
    """The peak grows by some pieces of rows: 50 MB of mapped or held weights would show."""
    if sys.platform != "linux":
        pytest.skip("VmHWM is Linux's")
    checkpoints.write_checkpoint(tmp_path / "small", dtype="BF16")
    grown = run(
        """
        import json, os, sys, phiggml as pg
        def peak():
            return next(int(line.split()[1]) for line in open("/proc/self/status")
                        if line.startswith("VmHWM"))
        types = ("BF16", "F16", "F32", "Q8_0")
        for type in types:
            pg.convert(sys.argv[1], f"{sys.argv[3]}/{type}-small", type, threads=2)
        before, grown = peak(), {}
        for type in types:
            pg.convert(sys.argv[2], f"{sys.argv[3]}/{type}", type, threads=2)
            grown[type] = (peak() - before) * 1024
        print(json.dumps(grown))
        """,
        tmp_path / "small",
        large,
        tmp_path,
    )
    # Eight pieces of 1.5 MiB, what malloc keeps, pages of our libraries: 18 to 25 MB were seen.
    assert max(grown.values()) < 40 * MEGABYTE, grown


def test_what_is_copied_is_copied_whole(
    large: Path, values: dict[str, npt.NDArray[np.uint16]], tmp_path: Path
) -> None:
    convert(large, tmp_path / "out.gguf", "BF16")
    found = {t.name: t.data.view(np.uint16) for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    for layer in range(checkpoints.LAYERS):
        for ours, theirs in (("ffn_up", "gate_up_proj"), ("ffn_down", "down_proj")):
            np.testing.assert_array_equal(
                found[f"blk.{layer}.{ours}.weight"],
                values[f"model.layers.{layer}.mlp.{theirs}.weight"],
            )


def test_short_reads_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system may give fewer bytes than it was asked for."""
    checkpoints.write_checkpoint(tmp_path / "m", dtype="BF16")
    plan = plan_conversion(tmp_path / "m")
    tensor = plan.tensors[0]
    rows = plan.read(tensor, 0, tensor.shape[0])
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: whole(fd, [views[0][:100]], at))
    assert np.array_equal(plan.read(tensor, 0, tensor.shape[0]), rows)


def test_a_checkpoint_that_changes_meanwhile_is_refused(large: Path, tmp_path: Path) -> None:
    """Truncated, truncated and filled up again, written to, lengthened; nothing is left behind."""
    said = run(
        """
        import json, os, shutil, sys, phiggml as pg
        source, folder = sys.argv[1:]
        def change(kind, path):
            size = os.path.getsize(path)
            if kind != "longer":
                os.truncate(path, 4096)
            if kind == "filled":
                os.truncate(path, size)
            if kind == "longer":
                os.truncate(path, size + 1)
        said = {}
        for type in ("BF16", "Q4_0"):
            for kind in ("shorter", "filled", "longer"):
                checkpoint, out = folder + "/checkpoint", folder + "/out"
                shutil.copytree(source, checkpoint)
                os.mkdir(out)
                def meanwhile(progress):
                    if 0 < progress.done < progress.total // 2 and not changed:
                        changed.append(progress)
                        for i in (1, 2):
                            change(kind, f"{checkpoint}/model-0000{i}-of-00002.safetensors")
                changed = []
                try:
                    pg.convert(checkpoint, out + "/m.gguf", type, progress=meanwhile)
                except pg.FormatError as error:
                    said[f"{type} {kind}"] = [str(error), error.path, os.listdir(out)]
                shutil.rmtree(checkpoint)
                shutil.rmtree(out)
        print(json.dumps(said))
        """,
        large,
        tmp_path,
    )
    assert len(said) == 6
    for case, (message, path, left) in said.items():
        # One that is filled again may be seen before it is.
        seen = {"shorter": "shorter", "filled": "shorter|written to", "longer": "written to"}
        assert re.search(seen[case.split()[1]], message), case
        assert message.startswith("read: ") and path in message
        assert left == []


def test_bytes_written_over_are_noticed(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path / "m", dtype="BF16")

    def write_over(progress: Progress) -> None:
        with (tmp_path / "m" / "model.safetensors").open("r+b") as file:
            file.seek(-2, os.SEEK_END)
            file.write(b"\0\0")

    with pytest.raises(FormatError, match=r"model\.safetensors: was written to while"):
        convert(tmp_path / "m", tmp_path / "out.gguf", "BF16", progress=write_over)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_checkpoint_that_is_replaced_meanwhile_is_read_as_it_was(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path / "m", dtype="BF16")
    convert(tmp_path / "m", tmp_path / "before.gguf", "Q8_0")
    other = tmp_path / "other"
    checkpoints.write_checkpoint(other, dtype="BF16", seed=2)

    def replace(progress: Progress) -> None:
        if (other / "model.safetensors").exists():
            (other / "model.safetensors").replace(tmp_path / "m" / "model.safetensors")

    convert(tmp_path / "m", tmp_path / "out.gguf", "Q8_0", progress=replace)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "before.gguf").read_bytes()


def test_ctrl_c_while_weights_are_copied(large: Path, tmp_path: Path) -> None:
    said = interrupted(
        f"""
        for _ in range(200):
            pg.convert({str(large)!r}, folder + "/out.gguf", "BF16", progress=started,
                       overwrite=True)
            os.remove(folder + "/out.gguf")
        """,
        tmp_path,
    )
    assert said["ended"] == "KeyboardInterrupt"
    assert said["files"] == []
    seconds = said["seconds"]
    # A tenth of it is what a quiet machine takes.
    assert isinstance(seconds, float) and seconds < 1.0


def test_a_plan_and_a_dry_run_read_headers_alone(tmp_path: Path) -> None:
    """Weights of 3 GB that are holes: neither read calls nor a map may touch them."""
    if sys.platform != "linux":
        pytest.skip("what a process has read is known on Linux")
    folder = tmp_path / "m"
    checkpoints.write_checkpoint(folder, dtype="BF16")
    wide = 1 << 23
    checkpoints.write_json(folder / "config.json", checkpoints.config(intermediate_size=wide))
    header: dict[str, Any] = {}
    end = 0
    for name, shape in checkpoints.shapes(feed_forward=wide).items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    weights = folder / "model.safetensors"
    weights.write_bytes(checkpoints.with_header(json.dumps(header).encode()))
    os.truncate(weights, weights.stat().st_size + end)
    assert end > 3_000 * MEGABYTE
    report = run(
        """
        import json, sys, phiggml as pg
        from phiggml.conversion import plan_conversion
        def number(file, key):
            return next(int(line.split()[1]) for line in open(f"/proc/self/{file}")
                        if line.startswith(key))
        read, peak = number("io", "rchar"), number("status", "VmHWM")
        plan = plan_conversion(sys.argv[1])
        assert len(str(plan)) > 1000
        dry = pg.convert(sys.argv[1], sys.argv[2], "BF16", dry_run=True)
        assert len(str(dry)) > 1000
        print(json.dumps({
            "nbytes": dry.nbytes,
            "read": number("io", "rchar") - read,
            "resident": 1024 * (number("status", "VmHWM") - peak)}))
        """,
        folder,
        tmp_path / "out.gguf",
    )
    assert report["nbytes"] > end
    assert report["read"] < 4 * MEGABYTE
    assert report["resident"] < 100 * MEGABYTE
    assert not (tmp_path / "out.gguf").exists()


def test_closing_a_plan_closes_its_files(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path / "m", shards=3)

    def open_files() -> int:
        return len(list(Path("/dev/fd").iterdir()))

    before = open_files()
    for _ in range(3):
        plan = plan_conversion(tmp_path / "m")
        assert open_files() == before + 3
        plan.checkpoint.close()
        assert open_files() == before
    plan = plan_conversion(tmp_path / "m")
    del plan
    assert open_files() == before
