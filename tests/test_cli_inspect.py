"""phiggml inspect: the file, a tensor's figures, histograms as text and as pictures."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import gguf
import numpy as np
import pytest

import gguf_bytes as gb
import phiggml as pg
from command_line import NANO, Out, complaint, phiggml
from phiggml import cli_histogram


def has_matplotlib() -> bool:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


# the whole file ----------------------------------------------------------------------------------


def test_json_is_what_gguf_reads(nano_q4: Path, capsys: Out) -> None:
    assert phiggml("inspect", nano_q4, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    reader = gguf.GGUFReader(nano_q4)
    assert document["parameters"] == sum(int(t.n_elements) for t in reader.tensors)
    found = [(t["name"], t["type"], t["nbytes"], t["offset"]) for t in document["tensors"]]
    assert found == [(t.name, t.tensor_type.name, t.n_bytes, t.data_offset) for t in reader.tensors]
    fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert document["metadata"] == fields
    tokens = fields["tokenizer.ggml.tokens"]
    config = json.loads((NANO / "config.json").read_text("utf-8"))
    assert (document["context_length"], document["vocabulary_size"]) == (
        config["max_position_embeddings"],
        len(tokens),
    )
    assert document["chat_template"] is True
    assert (document["parts"], document["byte_order"]) == ([str(nano_q4)], "little")
    shares = document["types"]
    assert sum(share["nbytes"] for share in shares.values()) == sum(
        int(t.n_bytes) for t in reader.tensors
    )


def test_tables(nano_q4: Path, capsys: Out) -> None:
    assert phiggml("inspect", nano_q4) == 0
    text = capsys.readouterr().out
    for line in (
        r"^file +.*\.gguf, 2\.\d+ MB, GGUF version 3, little-endian$",
        r"^architecture +phi3$",
        r"^types +[\d.]+% Q4_K, 13 tensors, 1\.\d+ MB$",
        r"^context length +4096$",
        r"^chat template +326 characters, 1 line:$",
        r"^ +\{%- for message in messages -%\}",
        r"^ +\.\.\.$",
        r"^tokenizer\.ggml\.tokens +[\d,]+: \[<unk>, ",
        r"^output\.weight +\d+ x \d+ +Q6_K +[\d,]+$",
    ):
        assert re.search(line, text, re.MULTILINE), line
    assert "\nparts" not in text
    assert max(map(len, text.splitlines())) < 140  # arrays and templates are shortened


def test_a_split_model(nano_q4: Path, tmp_path: Path, capsys: Out) -> None:
    parts = pg.split_gguf(nano_q4, tmp_path / "nano", max_tensors=10)
    assert phiggml("inspect", parts[1]) == 0
    text = capsys.readouterr().out
    names = "".join(rf"\n[parts ]+ {re.escape(path.name)}" for path in parts)
    assert re.search(names, text)
    assert "\nparameters       3,672,320\n" in text
    assert phiggml("inspect", parts[1], "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["parts"] == [str(path) for path in parts]
    assert {tensor["path"] for tensor in document["tensors"]} == set(document["parts"])


def test_a_big_endian_file(tmp_path: Path, capsys: Out) -> None:
    path = tmp_path / "x.gguf"
    g = gb.Layout(2, ">")
    pairs = [
        g.pair("tokenizer.chat_template", gb.STRING, g.string("{# first #}\n\n\x1b[31mred")),
        g.number("tokenizer.ggml.tokens", gb.UINT32, 7),  # no array: a stranger's file
    ]
    path.write_bytes(g.gguf(pairs))
    assert phiggml("inspect", path) == 0
    text = capsys.readouterr().out
    assert "GGUF version 2, big-endian\n" in text
    shown = r"chat template +21 characters, 3 lines:\n +\{# first #\}\n *\n +\\x1b\[31mred\n\n"
    assert re.search(shown, text)
    assert re.search(r"^vocabulary +-$", text, re.MULTILINE)


def test_a_strangers_file(tmp_path: Path, capsys: Out) -> None:
    path = tmp_path / "odd.gguf"
    with pg.GGUFWriter(path) as writer:
        writer.metadata["odd.text"] = "\x1b]0;owned\x07 \udc80 \x9b2J"
        writer.metadata["odd.numbers"] = np.array([np.nan, np.inf, 1.5], np.float32)
        writer.metadata["general.architecture"] = 3
        writer.add_tensor("\x1b[31mred", np.ones(4, np.float32))
    assert phiggml("inspect", path) == 0
    text = capsys.readouterr().out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert "\\x1b[31mred" in text
    assert phiggml("inspect", path, "--json") == 0

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    document = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert document["metadata"]["odd.numbers"] == ["nan", "inf", 1.5]
    for view in ("--tensor", "--plot"):
        assert phiggml("inspect", path, view, "\x1b[31mred") == 0
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", capsys.readouterr().out)


def test_nothing_forges_lines(tmp_path: Path, capsys: Out) -> None:
    """Every line begins with what phiggml wrote, and a stranger's value stays on its own."""
    evil = "phi3\nparameters       7,000,000,000\r\u2028x\u202e"
    pairs = [
        gb.pair("general.architecture", gb.STRING, gb.string(evil)),
        gb.pair("general.name", gb.STRING, gb.string(evil)),
        gb.pair(f"k{evil}", gb.STRING, gb.string(evil)),
        gb.strings("s", [evil] * 2),
        gb.pair("tokenizer.chat_template", gb.STRING, gb.string(f"a\rb\u2028c\td\n{evil}\n")),
    ]
    path = tmp_path / "x\nparameters       2.gguf"
    tensors = [gb.tensor(evil[:30], (8,), gb.F32)]
    path.write_bytes(gb.gguf(pairs, tensors, bytes(32)))
    assert phiggml("inspect", path) == 0
    lines = capsys.readouterr().out.split("\n")
    assert "".join(lines).isprintable()
    assert [line for line in lines if line.startswith("parameters")] == ["parameters       8"]
    # 8 facts, of which the template has four lines more; two tables and what parts them.
    assert len(lines) == 9 + 4 + 1 + (1 + 5) + 1 + (1 + 1) + 1
    for view in ("--tensor", "--plot"):
        assert phiggml("inspect", path, view, evil[:30]) == 0
        lines = capsys.readouterr().out.split("\n")
        assert "".join(lines).isprintable()
        assert [line for line in lines if line.startswith("parameters")] == []
    assert phiggml("inspect", path, "--tensor", evil[:29]) == 3
    assert complaint(capsys)


def test_wide_keys_make_no_wide_table(tmp_path: Path, capsys: Out) -> None:
    pairs = [gb.number(b"k" * 65535, gb.UINT8, 1)]
    pairs += [gb.number(f"a{i}", gb.UINT8, 1) for i in range(300)]
    path = tmp_path / "x.gguf"
    path.write_bytes(gb.gguf(pairs))
    assert phiggml("inspect", path) == 0
    assert len(capsys.readouterr().out) < 50_000


# one tensor --------------------------------------------------------------------------------------


def figures(path: Path, name: str, capsys: Out) -> dict[str, Any]:
    assert phiggml("inspect", path, "--tensor", name, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_figures_against_numpy(nano_q4: Path, capsys: Out) -> None:
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(nano_q4).tensors}
    for name in ("output.weight", "output_norm.weight", "blk.0.ffn_up.weight"):
        x = gguf.dequantize(tensors[name].data, tensors[name].tensor_type).astype(np.float64)
        found = figures(nano_q4, name, capsys)
        expected = {"min": x.min(), "max": x.max(), "mean": x.mean(), "std": x.std()}
        measured = {key: found["figures"][key] for key in expected}
        assert measured == pytest.approx(expected, rel=1e-12)
        assert found["figures"]["count"] == x.size
        assert (found["shape"], found["path"]) == (list(x.shape), str(nano_q4))
        assert found["offset"] == tensors[name].data_offset


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Tensors with odd numbers, or none."""
    path = tmp_path / "odd.gguf"
    with pg.GGUFWriter(path) as writer:
        some = np.array([np.nan, np.inf, -np.inf, 2, 4, np.nan], np.float32)
        writer.add_tensor("some", some)
        writer.add_tensor("none", np.array([np.nan, np.inf], np.float32))
        writer.add_tensor("one", np.full((2, 3), 7, np.int16))
        writer.add_tensor("huge", np.array([-1.7e308, 1.7e308, 0, 1]))
        writer.add_tensor("blocks", np.zeros(36, np.uint8), "Q8_1")
    return path


def test_figures_of_odd_tensors(odd: Path, capsys: Out) -> None:
    some = figures(odd, "some", capsys)["figures"]
    expected = {"count": 6, "n_nan": 2, "n_infinite": 2, "min": 2, "max": 4, "mean": 3, "std": 1}
    assert some == expected
    none = figures(odd, "none", capsys)["figures"]
    assert (none["n_nan"], none["n_infinite"], none["min"], none["std"]) == (1, 1, None, None)
    assert figures(odd, "one", capsys)["figures"]["mean"] == 7
    assert figures(odd, "blocks", capsys)["figures"] is None
    for name in ("some", "none", "one", "huge", "blocks"):
        assert phiggml("inspect", odd, "--tensor", name) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "type             Q8_1, 9 bits per weight" in lines
    assert "std              -" in lines


def test_figures_of_pieces_far_from_zero(tmp_path: Path, capsys: Out) -> None:
    """A mean of a million and deviations of a millionth of it, in two pieces that differ."""
    x = np.concatenate([np.zeros(1_100_000), np.linspace(-1, 1, 300_001)])
    with pg.GGUFWriter(tmp_path / "x.gguf") as writer:
        writer.add_tensor("far", x + 1e6)
        # Mean and deviation of each piece are other than those of all: 0 and 0, 10 and 0.
        apart = np.repeat([0.0, 10.0], 1 << 20)
        writer.add_tensor("apart", apart)
    assert figures(tmp_path / "x.gguf", "apart", capsys)["figures"]["std"] == 5
    found = figures(tmp_path / "x.gguf", "far", capsys)["figures"]
    assert found["std"] == pytest.approx(x.std(), rel=1e-9)
    assert found["mean"] - 1e6 == pytest.approx(x.mean(), abs=1e-9)


def test_a_tensor_that_is_not_there(nano_q4: Path, capsys: Out) -> None:
    assert phiggml("inspect", nano_q4, "--tensor", "output.wieght") == 3
    assert "Did you mean output.weight" in complaint(capsys)
    assert phiggml("inspect", nano_q4, "--plot", "x") == 3
    assert complaint(capsys).endswith("it has no tensor 'x'.")


# histograms --------------------------------------------------------------------------------------


def test_counts_against_numpy(nano_q4: Path, capsys: Out) -> None:
    (tensor,) = (t for t in gguf.GGUFReader(nano_q4).tensors if t.name == "output.weight")
    x = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
    line = ("inspect", nano_q4, "--plot", "output.weight", "--bins", "17", "--json")
    assert phiggml(*line) == 0
    found = json.loads(capsys.readouterr().out)
    low = max(x.min(), x.mean() - 4 * x.std())
    high = min(x.max(), x.mean() + 4 * x.std())
    assert found["edges"] == pytest.approx(np.linspace(low, high, 18), rel=1e-9)
    edges = np.array(found["edges"])
    assert found["counts"] == np.histogram(x, edges)[0].tolist()
    assert found["below"] == (x < edges[0]).sum() > 0
    assert found["above"] == (x > edges[-1]).sum() > 0
    assert found["below"] + found["above"] + sum(found["counts"]) == x.size


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("some", "outside: 2 NaN, 2 infinite"),
        ("none", "outside: 1 NaN, 1 infinite"),
        ("one", "outside: nothing"),
        ("huge", "outside: nothing"),
    ],
)
def test_histograms_of_odd_tensors(odd: Path, name: str, says: str, capsys: Out) -> None:
    for log in ((), ("--log",)):
        assert phiggml("inspect", odd, "--plot", name, "--bins", "4", *log) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1 + 4 + 1 + 1
        assert lines[-1] == says
    assert phiggml("inspect", odd, "--plot", name, "--bins", "4", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    inside = {"some": 2, "none": 0, "one": 6, "huge": 4}[name]
    assert sum(document["counts"]) == inside
    assert all(math.isfinite(edge) for edge in document["edges"])


@pytest.mark.parametrize("value", [0.0, 7.0, 1e20, -3e38, 1e-40, 1.7e308, -1.79e308])
def test_a_single_value_has_bins_around_it(value: float, tmp_path: Path, capsys: Out) -> None:
    path = tmp_path / "x.gguf"
    with pg.GGUFWriter(path) as writer:
        writer.add_tensor("t", np.full(8, value, np.float64))
    assert phiggml("inspect", path, "--plot", "t", "--bins", "1000", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (sum(document["counts"]), document["below"], document["above"]) == (8, 0, 0)
    edges = np.array(document["edges"])
    assert (np.diff(edges) > 0).all()
    assert edges[0] < value < edges[-1]


def test_odd_numbers_give_no_warnings(tmp_path: Path) -> None:
    """Numbers near infinity, and NaN that signal, which a conversion complains about."""
    path = tmp_path / "x.gguf"
    with pg.GGUFWriter(path) as writer:
        signalling = np.array([0x7F800001, 0, 0xFF800001, 0x3F800000], np.uint32)
        writer.add_tensor("signalling", signalling.view(np.float32))
        writer.add_tensor("large", np.full(8, 1e20, np.float32))
        writer.add_tensor("larger", np.array([-1.7e308, 1.7e308]))
    out = tmp_path / "x.png"
    lines = [
        ("inspect", path, view, name, *more)
        for name in ("signalling", "large", "larger")
        for view, more in (
            ("--tensor", ()),
            ("--plot", ()),
            *([("--plot", ("-o", out, "--overwrite"))] if has_matplotlib() else []),
        )
    ]
    code = (
        "import sys; from phiggml.cli import main\n"
        f"for line in {[list(map(str, line)) for line in lines]!r}: print(main(line))"
    )
    command = [sys.executable, "-W", "always", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    # float64 near its greatest value has axes that nobody can draw: said in a sentence.
    said = [line for line in done.stderr.splitlines() if not line.startswith("phiggml: inspect: ")]
    assert said == []
    codes = [line for line in done.stdout.splitlines() if line in ("0", "3")]
    assert codes[:-1] == ["0"] * (len(lines) - 1)


def counted(counts: list[int]) -> cli_histogram.Histogram:
    edges = np.linspace(0, 1, len(counts) + 1)
    return cli_histogram.Histogram(edges, np.array(counts, np.int64), 0, 0, 0, 0)


def test_bars_are_as_long_as_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    found = counted([800, 400, 101, 1, 0])
    lines = cli_histogram.bars(found, log=False)
    # 30 columns, less 3 for edges, 3 for counts and two gaps of 2.
    assert lines == [
        f"  0  {'█' * 20}  800",
        f"0.2  {'█' * 10}{' ' * 10}  400",
        f"0.4  ██▌{' ' * 17}  101",
        f"0.6  ▏{' ' * 19}    1",
        f"0.8  {' ' * 20}    0",
        "  1",
    ]
    logarithmic = cli_histogram.bars(counted([800, 0, 27, 0, 0]), log=True)
    lengths = [line.count("█") for line in logarithmic]
    assert lengths == [20, 0, round(20 * math.log(28) / math.log(801)), 0, 0, 0]


@pytest.mark.parametrize("columns", [1, 40, 80, 200])
def test_bars_fit_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = counted(rng.integers(0, 10 ** rng.integers(1, 9), 7).tolist())
        for log in (False, True):
            longest = max(map(len, cli_histogram.bars(found, log=log)))
            assert longest <= max(columns, 30)


def test_bars_without_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    first, second, third, *_ = cli_histogram.bars(counted([800, 1, 0, 0, 0]), log=False)
    assert (first.count("#"), second.count("#"), third.count("#")) == (20, 1, 0)
    assert "".join((first, second, third)).isascii()


def test_a_plot_of_a_model(nano_f16: Path, capsys: Out) -> None:
    assert phiggml("inspect", nano_f16, "--plot", "output.weight") == 0
    title, *bars, outside = capsys.readouterr().out.splitlines()
    assert title == "output.weight: F16, 2048 x 256"
    assert len(bars) == 21
    assert all(re.fullmatch(r" *-?[\d.]+  [█▏▎▍▌▋▊▉]+ *  +[\d,]+", line) for line in bars[:-1])
    assert re.fullmatch(r"outside: \d+ below -[\d.]+, [\d,]+ above [\d.]+", outside)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--plot", "some", "--bins", "0"), 3, "bins"),
        (("--plot", "some", "--bins", "1001"), 3, "bins"),
        (("-o", "x.png"), 3, "--plot"),
        (("--bins", "5"), 3, "--plot"),
        (("--log",), 3, "--plot"),
        (("--log", "--tensor", "some"), 3, "--plot"),
        (("--plot", "blocks"), 5, "Q8_1"),
        (("--plot", "some", "--threads", "0"), 3, "threads"),
    ],
)
def test_plots_that_cannot_be(
    odd: Path, arguments: tuple[str, ...], code: int, says: str, capsys: Out
) -> None:
    assert phiggml("inspect", odd, *arguments) == code
    assert says in complaint(capsys)


# pictures ----------------------------------------------------------------------------------------


needs_matplotlib = pytest.mark.skipif(not has_matplotlib(), reason="matplotlib is not installed")


@needs_matplotlib
@pytest.mark.parametrize(
    ("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("", b"\x89PNG")]
)
def test_a_picture(nano_f16: Path, tmp_path: Path, suffix: str, magic: bytes, capsys: Out) -> None:
    out = tmp_path / f"x.{suffix}".rstrip(".")
    line = ("inspect", nano_f16, "--plot", "output.weight", "-o", out)
    assert phiggml(*line, "--log") == 0
    assert capsys.readouterr().out == f"{out}: output.weight: F16, 2048 x 256\n"
    assert out.read_bytes().startswith(magic)
    assert phiggml(*line) == 8
    assert "--overwrite" in complaint(capsys)
    assert phiggml(*line, "--overwrite") == 0
    assert list(tmp_path.iterdir()) == [out]


@needs_matplotlib
def test_a_picture_of_no_known_kind(nano_f16: Path, tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "x.docx"
    assert phiggml("inspect", nano_f16, "--plot", "output.weight", "-o", out) == 3
    assert "docx" in complaint(capsys)
    assert list(tmp_path.iterdir()) == []


@needs_matplotlib
def test_a_picture_with_a_strangers_title(tmp_path: Path) -> None:
    """No formula, no glyph that lacks, no line of its own."""
    path, name = tmp_path / "x.gguf", "$\\frac{1$ \n 你好 \x1b[2J"
    with pg.GGUFWriter(path) as writer:
        writer.add_tensor(name, np.arange(4, dtype=np.float32))
    out = tmp_path / "x.png"
    assert phiggml("inspect", path, "--plot", name, "-o", out) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_pictures_without_matplotlib(
    nano_f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    out = tmp_path / "x.png"
    assert phiggml("inspect", nano_f16, "--plot", "output.weight", "-o", out) == 5
    assert "pip install matplotlib" in complaint(capsys)
    assert not out.exists()
