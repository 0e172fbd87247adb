"""The public docstrings have one form, and their examples say what really comes out."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import phiggml

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "examples" / "phi3-nano"
DATA = ROOT / "tests" / "data"
SECTIONS = ["Args", "Attributes", "Returns", "Raises", "Cost", "Source", "Example"]


def modules() -> list[str]:
    found = pkgutil.walk_packages(phiggml.__path__, "phiggml.")
    names = [info.name for info in found if not info.name.endswith(("__main__", "_core"))]
    return ["phiggml", *sorted(names)]


@pytest.mark.parametrize("name", modules())
def test_examples_run(
    name: str, nano_f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The examples find a checkpoint and a model by these names in the current folder.
    (tmp_path / "phi3-nano").symlink_to(NANO)
    (tmp_path / "phi3-nano.gguf").symlink_to(nano_f16)
    (tmp_path / "phi2").symlink_to(DATA / "lora_phi2")
    (tmp_path / "phi2-adapter").symlink_to(DATA / "lora_phi2")
    monkeypatch.chdir(tmp_path)
    module: ModuleType = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder().find(module, name):
        runner.run(test)
    assert runner.failures == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    counted = sum(
        len(test.examples)
        for name in modules()
        for test in finder.find(importlib.import_module(name), name)
    )
    assert counted >= 20


def public() -> dict[str, Callable[..., Any]]:
    """Public functions, classes and methods by name."""
    found: dict[str, Callable[..., Any]] = {}
    for name in phiggml.__all__:
        value = getattr(phiggml, name)
        found[name] = value
        if inspect.isclass(value):
            members = {m: v for m, v in vars(value).items() if inspect.isfunction(v)}
            found |= {f"{name}.{m}": v for m, v in members.items() if m[0] != "_"}
    return found


def sections(text: str) -> list[str]:
    return [name for name in SECTIONS if re.search(rf"^{name}:", text, re.MULTILINE)]


@pytest.mark.parametrize("name", public())
def test_form(name: str) -> None:
    """One line, then sections in order, each under a heading of its own."""
    text = inspect.getdoc(public()[name]) or ""
    first, _, rest = text.partition("\n")
    assert first.endswith((".", '"`.')), first
    assert not rest or rest.startswith("\n")
    headings = re.findall(rf"^({'|'.join(SECTIONS)}):(.*)$", text, re.MULTILINE)
    assert all(after == "" for _, after in headings), headings
    assert [heading for heading, _ in headings] == sections(text)
    assert (">>>" in text) == ("Example" in sections(text))


def takes_arguments(value: object) -> bool:
    """Errors and what only files make (GGUFTensor) are nothing that a user calls."""
    if not inspect.isclass(value):
        return True
    made_by_us = issubclass(value, Exception) or value is phiggml.GGUFTensor
    return "__init__" in vars(value) and not (dataclasses.is_dataclass(value) or made_by_us)


@pytest.mark.parametrize("name", [n for n, v in public().items() if takes_arguments(v)])
def test_callables_say_what_they_take_and_give(name: str) -> None:
    value = public()[name]
    text = inspect.getdoc(value) or ""
    taken = [p for p in inspect.signature(value).parameters if p not in ("self", "cls")]
    block = re.search(r"^Args:\n((?:    .*\n|\n)+)", text + "\n", re.MULTILINE)
    described = re.findall(r"^    ([\w, ]+):", block[1], re.MULTILINE) if block else []
    assert [p for names in described for p in names.split(", ")] == taken
    if inspect.isfunction(value) and "." not in name:
        assert {"Returns", "Source", "Example"} <= set(sections(text))


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python, one block after the other, on small models and a smaller array."""
    (tmp_path / "Phi-3-mini-4k-instruct").symlink_to(NANO)
    phiggml.convert(DATA / "phi4-mini-tiny", tmp_path / "phi4-mini.gguf")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text("utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block.replace("(4096, 4096)", "(8, 4096)"), names)
    assert f"all {len(phiggml.quant_types())} types" in text
    assert f"All {len(names['pg'].model_types())} whole-model types" in text
    assert names["q"].data.shape == (8, 2304)
    assert names["logits"].shape == (names["model"].n_vocab,)
    names["model"].close()
