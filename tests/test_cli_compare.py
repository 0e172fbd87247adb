"""phiggml compare: figures against numpy and the gguf package, what is compared."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
from command_line import Out, Terminal, complaint, phiggml
from compared_files import (
    Array,
    document,
    figures,
    gguf_file,
    model_file,
    normal,
    require_figures,
    safetensors_file,
    types,
)
from phiggml import cli_compare


def requantized(x: Array, type: str) -> npt.NDArray[np.float64]:
    """There and back by the gguf package alone."""
    kind = gguf.GGMLQuantizationType[type]
    back: Array = gguf.quants.dequantize(gguf.quants.quantize(x.astype(np.float32), kind), kind)
    return back.astype(np.float64)


def together(tensors: list[Array], type: str) -> dict[str, float]:
    """Those of several, each scaled to a root mean square of 1."""
    found = [figures(x, requantized(x, type)) for x in tensors]
    shares = np.array([x.size for x in tensors]) / sum(x.size for x in tensors)
    nrmse, cosine = (np.array([f[key] for f in found]) for key in ("nrmse", "cosine"))
    return {
        "nrmse": float(np.sqrt(shares @ nrmse**2)),
        "max_abs": max(f["max_abs"] for f in found),
        "cosine": float(shares @ cosine),
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_file(tmp_path)


# figures -----------------------------------------------------------------------------------------


def test_one_tensor(model: Path, capsys: Out) -> None:
    found = document(capsys, model, "--tensor", "large", "--types", "q8_0, Q4_0,F16,")
    assert [row["type"] for row in found["types"]] == ["Q4_0", "Q8_0", "F16"]
    for row in found["types"]:
        require_figures(row, figures(normal(6, 512), requantized(normal(6, 512), row["type"])))
        assert row["bits_per_weight"] == pg.QuantType(row["type"]).bits_per_weight
        assert 0 < row["seconds"] < 10
    assert found["tensors"] == [{"name": "large", "type": "F32", "shape": [6, 512]}]
    assert (found["path"], found["numbers"], found["left_out"]) == (str(model), 6 * 512, {})


def test_all_tensors_together(model: Path, capsys: Out) -> None:
    found = document(capsys, model, "--types", "Q4_0,Q5_0,BF16")
    matrices = [normal(6, 512), normal(2, 256, seed=1, scale=1e-3)]
    for row in found["types"]:
        require_figures(row, together(matrices, row["type"]))
    assert [tensor["name"] for tensor in found["tensors"]] == ["large", "small"]
    assert found["numbers"] == 6 * 512 + 2 * 256
    assert found["left_out"] == {
        "vector": "of one axis",
        "odd": "with rows of no multiple of 32",
        "counts": "of I32, no float type",
    }


def test_a_model(nano_f16: Path, capsys: Out) -> None:
    found = document(capsys, nano_f16, "--types", "Q8_0,Q4_0")
    reader = gguf.GGUFReader(nano_f16)
    tensors = {
        t.name: t.data for t in reader.tensors if len(t.shape) > 1 and t.tensor_type.name == "F16"
    }
    assert {tensor["name"] for tensor in found["tensors"]} == set(tensors)
    assert found["numbers"] == sum(x.size for x in tensors.values())
    for row in found["types"]:
        require_figures(row, together(list(tensors.values()), row["type"]))


def test_quantized_tensors_are_dequantized(nano_q4: Path, capsys: Out) -> None:
    name = "output.weight"
    found = document(capsys, nano_q4, "--tensor", name, "--types", "Q4_0")
    tensor = next(t for t in gguf.GGUFReader(nano_q4).tensors if t.name == name)
    held = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    require_figures(found["types"][0], figures(held, requantized(held, "Q4_0")))
    assert phiggml("compare", nano_q4, "--tensor", name, "--types", "Q4_0") == 0
    assert "from Q6_K, dequantized: the errors are against those" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path: Path, dtype: str, order: Any, capsys: Out) -> None:
    x, path = np.asarray(normal(2, 3, 64), dtype, order=order), tmp_path / "x.NPY"
    with path.open("wb") as file:
        np.save(file, x)
    found = document(capsys, path, "--types", "Q8_0,Q4_1")
    for row in found["types"]:
        require_figures(row, figures(x, requantized(x, row["type"])))
    name = np.dtype(dtype).newbyteorder("=").name
    assert found["tensors"] == [{"name": "x.NPY", "type": name, "shape": [2, 3, 64]}]


def test_safetensors(tmp_path: Path, capsys: Out) -> None:
    x, half, brain = normal(4, 64), normal(3, 32, seed=1), normal(2, 2, 96, seed=2)
    half, brain = half.astype(np.float16), brain.astype(ml_dtypes.bfloat16)
    path = safetensors_file(
        tmp_path / "x.safetensors",
        {
            "x": ("F32", (4, 64), x.tobytes()),
            "half": ("F16", (3, 32), half.tobytes()),
            "brain": ("BF16", (2, 2, 96), brain.tobytes()),
            "double": ("F64", (1, 32), x[0, :32].astype(np.float64).tobytes()),
            "eighths": ("F8_E4M3", (1, 32), bytes(32)),
            "whole": ("I64", (2,), bytes(16)),
            "scalar": ("F32", (), bytes(4)),
            "empty": ("F32", (0, 32), b""),
        },
    )
    found = document(capsys, path, "--types", "Q4_0,Q8_0")
    for row in found["types"]:
        require_figures(row, together([x, half, brain, x[:1, :32]], row["type"]))
    assert found["left_out"] == {
        "eighths": "of F8_E4M3, which is not read",
        "whole": "of I64, which is not read",
        "scalar": "without axes",
        "empty": "without elements",
    }
    found = document(capsys, path, "--types", "Q4_0", "--tensor", "brain")
    require_figures(found["types"][0], figures(brain, requantized(brain, "Q4_0")))


def test_big_endian_and_doubles(tmp_path: Path, capsys: Out) -> None:
    path, x = tmp_path / "x.gguf", normal(2, 64)
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("x", x.astype(np.float64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = document(capsys, path, "--types", "Q8_0")
    require_figures(found["types"][0], figures(x, requantized(x, "Q8_0")))
    assert found["tensors"][0]["type"] == "F64"


# what is compared --------------------------------------------------------------------------------


def test_types_fit_most_numbers(tmp_path: Path, capsys: Out) -> None:
    """Rows of 896, as some models have them: no K-quants, unless they are asked for."""
    shapes = {"wide": (1, 1024), "narrow": (2, 896), "convolution": (40, 40, 3, 3)}
    path = tmp_path / "x.gguf"
    gguf_file(path, {name: normal(*shape) for name, shape in shapes.items()})
    found = document(capsys, path)
    expected = {t for t in pg.quant_types() if t.block_size <= 128 and not t.requires_imatrix}
    assert types(found) == expected
    assert [tensor["name"] for tensor in found["tensors"]] == ["wide", "narrow"]
    assert found["left_out"] == {"convolution": "with rows of no multiple of 128"}
    found = document(capsys, path, "--types", "Q4_K,Q8_0")
    assert [tensor["name"] for tensor in found["tensors"]] == ["wide"]
    assert found["left_out"] == {
        "narrow": "with rows of no multiple of 256",
        "convolution": "with rows of no multiple of 256",
    }
    found = document(capsys, path, "--tensor", "convolution")
    assert types(found) == {"F32", "F16", "BF16"}


def test_the_only_tensor_may_be_a_vector(tmp_path: Path, capsys: Out) -> None:
    path = gguf_file(tmp_path / "x.gguf", {"x": normal(256), "ids": np.arange(4, dtype=np.int32)})
    found = document(capsys, path)
    assert types(found) == {t for t in pg.quant_types() if not t.requires_imatrix}
    assert found["left_out"] == {"ids": "of I32, no float type"}


def test_text(model: Path, capsys: Out) -> None:
    assert phiggml("compare", model, "--types", "Q8_0,Q4_0") == 0
    title, empty, heading, q4, q8, *rest = capsys.readouterr().out.splitlines()
    assert title == "model.gguf: 2 tensors, 3,584 numbers, F32"
    assert (empty, heading.split()) == (
        "",
        ["type", "bits", "nrmse", "max", "abs", "cosine", "seconds"],
    )
    cells = re.fullmatch(r"Q4_0  +4\.500  0\.(\d{6})  +([\d.]+)  0\.9\d{5}  +[\d.e-]+", q4)
    expected = together([normal(6, 512), normal(2, 256, seed=1, scale=1e-3)], "Q4_0")
    assert cells is not None and int(cells[1]) == round(1e6 * expected["nrmse"])
    assert q8.startswith("Q8_0 ")
    assert rest == [
        "",
        "left out: 1 of I32, no float type (counts); 1 of one axis (vector); "
        "1 with rows of no multiple of 32 (odd)",
    ]


def test_types_that_are_left_out_are_told(tmp_path: Path, capsys: Out) -> None:
    path = tmp_path / "x.npy"
    np.save(path, normal(2, 96))
    assert phiggml("compare", path, "--quiet") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("types with blocks of more than 32 are left out")


def test_progress_on_a_terminal(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    seen: list[pg.Progress] = []
    monkeypatch.setattr(cli_compare.ProgressBar, "__call__", lambda _, event: seen.append(event))
    assert phiggml("compare", model, "--types", "Q8_0,Q4_0") == 0
    sizes = [6 * 512 * 4, 6 * 512 * 4, 2 * 256 * 4, 2 * 256 * 4]
    assert [event.done for event in seen] == list(np.cumsum(sizes))
    assert {(event.stage, event.total) for event in seen} == {("compare", sum(sizes))}


def test_a_bar_is_drawn(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phiggml.cli_terminal._BAR_AFTER_SECONDS", 0)
    for quiet in (False, True):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        line = ("compare", model, "--types", "Q8_0", *(["-q"] if quiet else []))
        assert phiggml(*line) == 0
        assert ("compare" in terminal.getvalue()) != quiet


# bad calls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--types", ""), "empty"),
        (("--types", " , "), "empty"),
        (("--types", "Q4_K,Q9"), "Q9"),
        (("--types", "Q8_1"), "no target"),
        (("--types", "Q8_0,IQ2_XXS"), "--imatrix"),
        (("--tensor", "larg"), "Did you mean large?"),
        (("--tensor", "counts"), "'counts' is of I32, no float type"),
        (("--tensor", "odd", "--types", "Q4_0"), "odd is with rows of no multiple of 32"),
        (("--threads", "0"), "threads"),
        (("--overwrite",), "--plot"),
    ],
)
def test_calls_that_cannot_be(
    model: Path, arguments: tuple[str, ...], says: str, capsys: Out
) -> None:
    assert phiggml("compare", model, *arguments) == 3
    assert says in complaint(capsys)


def test_tensors_that_cannot_be(tmp_path: Path, capsys: Out) -> None:
    x = normal(2, 64)
    x[1, 3] = np.nan
    path = gguf_file(tmp_path / "x.gguf", {"fine": normal(2, 64), "bad": x, "big": x * 0 + 1e30})
    assert phiggml("compare", path, "--types", "Q8_0") == 3
    assert "tensor 'bad' holds NaN" in complaint(capsys)
    path = gguf_file(tmp_path / "y.gguf", {"big": np.full((2, 64), 1e30, np.float32)})
    assert phiggml("compare", path, "--types", "F32,F16") == 3
    assert re.search("tensor 'big': .* overflow", complaint(capsys))
    np.save(tmp_path / "int.npy", np.ones((2, 64), int))
    np.save(tmp_path / "scalar.npy", np.float32(1))
    np.save(tmp_path / "empty.npy", np.zeros((0, 64), np.float32))
    safetensors_file(tmp_path / "none.safetensors", {})
    for name, says in (
        ("int.npy", "int.npy is of int64, no float type"),
        ("scalar.npy", "without axes"),
        ("empty.npy", "without elements"),
        ("none.safetensors", "it is empty"),
    ):
        assert phiggml("compare", tmp_path / name) == 3
        assert says in complaint(capsys)
    assert phiggml("compare", tmp_path / "int.npy", "--tensor", "x") == 3
    assert "no tensor 'x'" in complaint(capsys)


def test_files_that_cannot_be_read(tmp_path: Path, capsys: Out) -> None:
    np.save(tmp_path / "good.npy", normal(3, 32))
    good = (tmp_path / "good.npy").read_bytes()
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    files = {
        "cut.npy": good[:-1],
        "nothing.npy": b"",
        "head.npy": good[:100],
        "vast.npy": good.replace(b"(3, 32), }" + 6 * b" ", b"(1099511627776,)"),
        "vaster.npy": good.replace(b"(3, 32), }" + 15 * b" ", b"(9999999999, 9999999999)}"),
        "open.npy": good.replace(b"}", b"("),
        "zip.npy": b"PK\3\4" + good,
        "text.npy": b"\x93NUMPY\1\0" + 200 * b"(",
        "cut.safetensors": b"\x10",
        "text.txt": b"some text, long enough to be read",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for name in (*files, "objects.npy"):
        assert phiggml("compare", tmp_path / name) == 4, name
        assert name in complaint(capsys)
    for name in ("none.npy", "none.gguf", "none.safetensors"):
        assert phiggml("compare", tmp_path / name) == 8
        assert name in complaint(capsys)
