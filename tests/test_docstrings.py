"""The examples in the public docstrings run, and say what really comes out."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from types import ModuleType

import pytest

import phiggml


def modules() -> list[str]:
    found = pkgutil.walk_packages(phiggml.__path__, "phiggml.")
    names = [info.name for info in found if not info.name.endswith(("__main__", "_core"))]
    return ["phiggml", *sorted(names)]


@pytest.mark.parametrize("name", modules())
def test_examples_run(name: str, request: pytest.FixtureRequest) -> None:
    module: ModuleType = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder().find(module, name):
        test.globs["getfixture"] = request.getfixturevalue
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
