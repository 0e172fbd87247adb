"""The pages of docs: sentences are those that the source says, lines work, links lead somewhere."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import phiggml as pg
import said_sentences as said
from adapter_files import random_pairs, write_lora
from phiggml import cli, runtime

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "phiggml"
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
INSTALL = (ROOT / "docs" / "install.md").read_text("utf-8")
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])

# troubleshooting ----------------------------------------------------------------------------------


def quotes() -> list[str]:
    lines = (line[2:] for line in TROUBLE.splitlines() if line.startswith("> "))
    found = [line.strip() for line in lines if line.strip()]
    assert len(found) > 30
    return found


PYTHON_FILES = (
    "__init__",
    "plugin",
    "runtime",
    "model",
    "placement_settings",
    "cli_doctor",
    "cli_self_test",
)


def sources() -> list[str]:
    texts: list[str] = []
    for name in PYTHON_FILES:
        texts += said.of_python(PACKAGE / f"{name}.py")
    for name in ("runtime", "model", "session", "session_settings", "kernel_set"):
        file = ROOT / "csrc" / f"{name}.cpp"
        texts += [*said.of_cpp(file.read_text("utf-8")), *said.of_cpp_errors(file, "device")]
    return texts


def must_be_told() -> Iterator[str]:
    """What somebody who looks for help will have read."""
    yield from runtime._SENTENCES.values()
    errors = frozenset({"ImportError", "_FaultError", "CheckError", "DeviceError"})
    for name in PYTHON_FILES:
        yield from said.of_calls(PACKAGE / f"{name}.py", errors)
    for name in ("runtime", "kernel_set"):
        yield from said.of_cpp_errors(ROOT / "csrc" / f"{name}.cpp", "device")


def test_every_quoted_sentence_is_said() -> None:
    texts = sources()
    strangers = [
        quote
        for quote in quotes()
        # A rule whose reason is the system's own words ends with a colon and an ellipsis.
        if not any(said.says(text, quote) or quote == f"{text}: {said.ANY}" for text in texts)
    ]
    assert strangers == []


def test_every_sentence_of_doctor_is_told() -> None:
    told = quotes()
    sentences = set(must_be_told())
    assert len(sentences) > 20
    untold = [text for text in sentences if not any(said.says(text, quote) for quote in told)]
    assert untold == []


def test_the_comparison_can_fail() -> None:
    """One word more or less is another sentence; a value stands for anything."""
    assert said.says("it has … of the …. Do it.", "it has … of the cats. Do it.")
    assert not said.says("it has … of the …. Do it.", "it has … of the cats. Do it again.")
    assert not said.says("…: …", "anything: at all")
    [text] = said.of_cpp('"a \\"b\\" " +\n  f(x) + ": c "\n  "d."')
    assert text == 'a "b" …: c d.'


# install ------------------------------------------------------------------------------------------


def test_every_switch_of_the_install_page_is_known() -> None:
    declared = r"^\s*(?:option|set) *\((\w+)"
    files = [ROOT / "third_party" / "llama.cpp" / "ggml" / "CMakeLists.txt"]
    files += sorted((ROOT / "cmake").glob("*.cmake"))
    names = {
        name
        for file in files
        for name in re.findall(declared, file.read_text("utf-8"), re.MULTILINE)
    }
    # Features of the CPU are set by name in a loop; targets of HIP are read where it is built.
    features = re.search(
        r"set\(features ([^)]*)\)", (ROOT / "cmake/HostFeatures.cmake").read_text()
    )
    assert features is not None
    names |= {f"GGML_{feature}" for feature in features[1].split()} | {"GPU_TARGETS"}
    used = set(re.findall(r"(?:cmake\.define\.|-D)((?:GGML|PHIGGML|GPU)_\w+)", INSTALL))
    assert used and used <= names


def test_every_preset_and_extra_is_on_the_install_page() -> None:
    presets = json.loads((ROOT / "CMakePresets.json").read_text("utf-8"))["configurePresets"]
    assert set(re.findall(r"--preset (\S+?)[`\s]", INSTALL)) >= {p["name"] for p in presets}
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = ", section, re.MULTILINE)) - {"test", "lint"}
    assert extras <= set(re.findall(r"`(?:phiggml)?\[?(\w+)\]?`", INSTALL))


# all pages ----------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def run_page(name: str, *, at_least: int) -> None:
    """A page's Python, one block after the other."""
    text = (ROOT / "docs" / name).read_text("utf-8")
    names: dict[str, Any] = {"__name__": name}
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= at_least
    try:
        for block in blocks:
            exec(block, names)
    finally:
        for value in names.values():
            if isinstance(value, (pg.Model, pg.Session)):
                value.close()


@pytest.mark.slow
def test_the_embedding_page_runs(
    nano_f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "phi3.gguf").symlink_to(nano_f16)
    (tmp_path / "Phi-3-mini-4k-instruct").symlink_to(ROOT / "examples" / "phi3-nano")
    monkeypatch.chdir(tmp_path)
    run_page("embedding.md", at_least=6)


def test_the_page_on_sessions_runs(
    nano_f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "phi3.gguf").symlink_to(nano_f16)
    pairs = random_pairs(nano_f16, ["blk.0.attn_output.weight"])
    write_lora(tmp_path / "adapter.gguf", "phi3", pairs)
    monkeypatch.chdir(tmp_path)
    run_page("sessions.md", at_least=15)


# sessions -----------------------------------------------------------------------------------------


def test_the_page_on_sessions_has_every_setting_of_sampling() -> None:
    """And its default."""
    section = (ROOT / "docs" / "sessions.md").read_text("utf-8").partition("## Sampling\n")[2]
    told: dict[str, str] = {}
    for row in section.partition("\n## ")[0].splitlines():
        if row.startswith("| `"):
            names, defaults = (cell.split(", ") for cell in row.strip("| ").split(" | ")[:2])
            told |= dict(zip(names, defaults, strict=True))
    said = {name.strip("`"): default.strip("`") for name, default in told.items()}
    breakers = said.pop("dry_sequence_breakers").split("` `")
    assert said == {
        field.name: str(field.default)
        for field in dataclasses.fields(pg.Sampling)
        if field.name != "dry_sequence_breakers"
    }
    assert tuple(each.replace("\\n", "\n") for each in breakers) == (
        pg.Sampling().dry_sequence_breakers
    )


def test_the_command_line_knows_the_lines_of_the_page_on_sessions() -> None:
    text = (ROOT / "docs" / "sessions.md").read_text("utf-8")
    lines = re.findall(r"^\$ phiggml ([^<#\n]*)", text, re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        assert cli._parser().parse_args(shlex.split(line)).verb is not None


# migrating ----------------------------------------------------------------------------------------


def calls(text: str) -> Iterator[ast.Call]:
    """The calls that a page spells out as inline code."""
    for code in re.findall(r"`([^`\n]+\(.*?\))`", text):
        tree = ast.parse(code, mode="eval").body
        if isinstance(tree, ast.Call):
            yield tree


def test_what_the_page_on_migrating_calls_is_there() -> None:
    """Each pg.X, session.x and model.x, with the parameters that are named."""
    text = (ROOT / "docs" / "migrating.md").read_text("utf-8")
    homes = {"pg": pg, "session": pg.Session, "model": pg.Model}
    column = [row.split(" | ")[1] for row in text.splitlines() if row.startswith("| ")]
    n_seen = 0
    for call in calls("\n".join(column)):
        home, *names = ast.unparse(call.func).split(".")
        found: Any = homes[home]
        for name in names:
            found = getattr(found, name)
        itself = [] if home == "pg" else [None]
        keywords = {str(keyword.arg): None for keyword in call.keywords}
        inspect.signature(found).bind(*itself, *call.args, **keywords)
        n_seen += 1
    assert n_seen > 40
    for name, attribute in re.findall(r"`(session|model)\.(\w+)`", text):
        assert hasattr(homes[name], attribute), attribute


def test_the_page_on_migrating_runs(
    nano_f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "phi3.gguf").symlink_to(nano_f16)
    monkeypatch.chdir(tmp_path)
    run_page("migrating.md", at_least=1)
