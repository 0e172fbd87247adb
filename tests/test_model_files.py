"""The file that was checked is the one that is loaded, and all parts of it."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import phiggml as pg
from phiggml import model as model_module
from small_models import small_model

TOKENS = [1, 2, 3]


def logits(path: Path, **settings: bool) -> np.ndarray:
    with pg.Model(path, **settings) as model, pg.Session(model, n_ctx=32) as session:
        return session.eval(TOKENS)


@pytest.mark.parametrize("use_mmap", [True, False])
def test_a_file_replaced_after_its_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_mmap: bool
) -> None:
    path = small_model("phi3").write(tmp_path / "model.gguf")
    expected = logits(path)
    other = small_model("phi3")
    other.tensors["output.weight"] = -other.tensors["output.weight"]
    other.write(hostile := tmp_path / "other.gguf")

    def check_and_replace(*arguments: object, **settings: object) -> None:
        real_check(*arguments, **settings)  # type: ignore[arg-type]
        hostile.replace(path)

    real_check = model_module.check_model
    monkeypatch.setattr(model_module, "check_model", check_and_replace)
    assert np.array_equal(logits(path, use_mmap=use_mmap), expected)
    assert not hostile.exists()
    monkeypatch.undo()
    assert np.array_equal(logits(path), -expected)


def test_a_file_deleted_after_its_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = small_model("phi3").write_split(tmp_path)
    expected = logits(paths[0])
    real_check = model_module.check_model

    def check_and_delete(*arguments: object, **settings: object) -> None:
        real_check(*arguments, **settings)  # type: ignore[arg-type]
        for path in paths:
            path.unlink()

    monkeypatch.setattr(model_module, "check_model", check_and_delete)
    assert np.array_equal(logits(paths[0]), expected)


def test_any_part_loads_the_whole(tmp_path: Path) -> None:
    expected = logits(small_model("phi3").write(tmp_path / "model.gguf"))
    for path in small_model("phi3").write_split(tmp_path):
        assert np.array_equal(logits(path), expected)
        with pg.Model(path) as model:
            assert set(model.placement) == set(small_model("phi3").tensors)
            assert "small" in model.metadata["general.name"]


def test_a_part_that_is_hostile(tmp_path: Path) -> None:
    model = small_model("phi3")
    model.tensors["blk.1.ffn_norm.weight"] = np.ones(64, np.float16)
    first, second = model.write_split(tmp_path)
    with pytest.raises(pg.FormatError, match=r"blk\.1\.ffn_norm\.weight is F16"):
        pg.Model(first)
    second.write_bytes(second.read_bytes()[:-40])
    with pytest.raises(pg.FormatError) as caught:
        pg.Model(first)
    assert caught.value.path == str(second) and caught.value.offset is not None


def test_messages_name_the_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = small_model("phi3").write_split(tmp_path)
    with caplog.at_level(logging.DEBUG, "phiggml"):
        pg.Model(second).close()
    assert f"from {first} (version" in caplog.text and "/proc/" not in caplog.text
    model = small_model("phi3")
    model.tensors["more.weight"] = np.zeros((2, 2), np.float32)
    odd = model.write(tmp_path / "odd.gguf")
    with pytest.raises(pg.FormatError, match="wrong number of tensors") as caught:
        pg.Model(odd)
    assert caught.value.path == str(odd) and "/proc/" not in str(caught.value)


def test_a_url_is_no_model(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    path = small_model("phi3").write(tmp_path / "model.gguf")
    with pytest.raises(pg.InputError, match="files of this machine only"):
        pg.Model(f"file://{path}")


WITHOUT_PROC = """
import os, sys, numpy, phiggml as pg
assert not os.path.exists("/proc/self/fd")
for path in sys.argv[1:]:
    with pg.Model(path) as model, pg.Session(model, n_ctx=32) as session:
        print(numpy.abs(session.eval([1, 2, 3])).sum())

from phiggml import model as module
check = module.check_model
def check_and_replace(file, *, purpose):
    check(file, purpose=purpose)
    os.replace(sys.argv[1], path)
module.check_model = check_and_replace
try:
    pg.Model(path)
except pg.FormatError as error:
    print("was replaced since it was checked" in str(error), error.path == path)
"""
NO_PROC = [
    "unshare",
    "--map-root-user",
    "--mount",
    "sh",
    "-c",
    'mount -t tmpfs none /proc && exec "$@"',
    "-",
]


def can_hide_proc() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NO_PROC, "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_hide_proc(), reason="this system does not let /proc be hidden")
def test_without_proc(tmp_path: Path) -> None:
    whole = small_model("phi3").write(tmp_path / "model.gguf")
    parts = small_model("phi3").write_split(tmp_path)
    expected = str(np.abs(logits(whole)).sum())
    result = subprocess.run(
        [*NO_PROC, sys.executable, "-c", WITHOUT_PROC, str(whole), str(parts[1])],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [expected, expected, "True", "True"]
