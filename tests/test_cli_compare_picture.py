"""phiggml compare --plot."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

import phiggml as pg
from command_line import Out, complaint, phiggml
from compared_files import (
    gguf_file,
    model_file,
    normal,
)
from phiggml import cli_compare
from phiggml.cli_compare_picture import place_labels


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_file(tmp_path)


def forbidden(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("work was begun")


def test_a_picture(model: Path, tmp_path: Path, capsys: Out) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "pictures" / "x.svg"
    out.parent.mkdir()
    chosen = ["Q4_0", "Q4_K", "Q5_1", "Q6_K", "F16", "F32", "IQ4_NL"]
    line = ("compare", model, "--types", ",".join(chosen), "--plot", out)
    assert phiggml(*line) == 0
    assert "Q5_1" in capsys.readouterr().out
    # matplotlib draws letters as paths, and has each text as a comment.
    texts = re.findall("<!-- (.*?) -->", out.read_text("utf-8"))
    names = [f"{name} (exact)" if name == "F32" else name for name in chosen]
    assert set(names) < set(texts)
    assert {"bits per weight", "nrmse", "float", "K", "IQ", "other"} < set(texts)
    assert "model.gguf: 2 tensors, 3,584 numbers, F32" in texts
    assert any("10^{-" in text for text in texts)
    assert phiggml(*line) == 8
    assert "--overwrite" in complaint(capsys)
    before = out.read_bytes()
    assert phiggml(*line, "--overwrite", "--tensor", "small") == 0
    assert out.read_bytes() != before
    assert list(out.parent.iterdir()) == [out]


def test_a_picture_says_that_columns_were_weighted(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    np.save(tmp_path / "i.npy", np.ones(512, np.float32))
    line = ("compare", model, "--tensor", "large", "--types", "Q8_0", "--plot", tmp_path / "x.svg")
    assert phiggml(*line, "--imatrix", tmp_path / "i.npy") == 0
    picture = (tmp_path / "x.svg").read_text("utf-8")
    assert "<!-- large: F32, 6 x 512, with importances -->" in picture


@pytest.mark.parametrize("name", ["zeros", "one", "$\\frac{1$ \n 你好 \x1b[2J"])
def test_pictures_of_anything(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    x = np.zeros((2, 256), np.float32) if name == "zeros" else normal(2, 256)
    path = gguf_file(tmp_path / "x.gguf", {name: x})
    out = tmp_path / "x"
    wanted = ["--types", "Q8_0"] if name == "one" else ["--types", "F32,F16,Q4_0,Q8_0"]
    assert phiggml("compare", path, *wanted, "--plot", out) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_pictures_are_checked_before_any_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(cli_compare, "open_source", forbidden)
    np.save(tmp_path / "x.npy", normal(2, 32))
    picture = tmp_path / "x.png"
    picture.write_bytes(model.read_bytes())
    for file, out, code, says in (
        (model, tmp_path / "x.docx", 3, "docx"),
        (model, tmp_path, 8, ""),
        (model, picture, 8, "--overwrite"),
        (picture, picture, 3, "source itself"),
    ):
        assert phiggml("compare", file, "--plot", out) == code
        assert says in complaint(capsys)


def test_pictures_without_matplotlib(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(cli_compare, "open_source", forbidden)
    assert phiggml("compare", model, "--plot", tmp_path / "x.png") == 5
    assert "pip install matplotlib" in complaint(capsys)
    assert not (tmp_path / "x.png").exists()


def test_labels_cover_neither_points_nor_each_other() -> None:
    rng = np.random.default_rng(0)
    frame = (0.0, 0.0, 600.0, 450.0)
    names = [str(type) for type in pg.quant_types()]
    for spread in (60.0, 120.0, 200.0):
        where = np.clip(rng.normal((300, 225), spread, (len(names), 2)), 5, 440)
        points = [(float(x), float(y)) for x, y in where]
        boxes = place_labels(points, names, frame)
        for i, (left, bottom, right, top) in enumerate(boxes):
            assert 0 <= left < right <= 600 and 0 <= bottom < top <= 450
            assert not any(left < x < right and bottom < y < top for x, y in points)
            for other in boxes[:i]:
                beside = right <= other[0] or other[2] <= left
                assert beside or top <= other[1] or other[3] <= bottom, (names[i], spread)
