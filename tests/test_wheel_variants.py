"""tools/check_variants.py: which differences of a CPU module are faults, by made-up figures."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
check_variants = importlib.import_module("check_variants")
cpu_variants = importlib.import_module("cpu_variants")


def best() -> Any:
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((20, 50)).astype(np.float32)
    arrays = {name: exact.copy() for name in ("F32", "F32 exact", "product", "plain")}
    arrays["Q4_K_M"] = exact * np.float32(1.03)  # what quantizing costs: 0.03
    arrays["nudged"] = exact * np.float32(1.005)
    texts = {"F32": ["a", "b"], "Q4_K_M": ["a", "c"]}
    return check_variants.Result("best.so", {"F32": "1", "Q4_K_M": "2"}, texts, arrays)


def scaled(name: str, factor: float) -> Any:
    found = best()
    return replace(found, arrays={**found.arrays, name: found.arrays[name] * np.float32(factor)})


def test_the_best_equals_itself() -> None:
    row = check_variants.compare("zen4", best(), best())
    assert row.cells[:3] == ("run", "same", "4 of 4")
    assert row.faults == ()


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (replace(best(), files={"F32": "1", "Q4_K_M": "3"}), "its Q4_K_M file is another one"),
        (replace(best(), texts={"F32": ["a", "x"], "Q4_K_M": ["a", "c"]}), "1 of 4 greedy texts"),
        (scaled("F32 exact", 1.001), "F32, largest differs by"),
        (scaled("F32", 1.002), "F32 differs by 2.0e-03"),
        (scaled("product", 1.00001), "Q4_K product differs by 1.0e-05"),
        (scaled("Q4_K_M", 1.015), "Q4_K_M differs by 1.5e-02"),
        (scaled("Q4_K_M", 1.002), "Q4_K_M beside F32 differs by"),
        (scaled("F32", float("nan")), "F32 differs by nan"),
    ],
)
def test_a_difference_is_a_fault(found: Any, sentence: str) -> None:
    faults = " ".join(check_variants.compare("zen4", found, best()).faults)
    assert sentence in faults


def test_a_difference_within_the_bounds_is_none() -> None:
    for name, factor in (("F32", 1.0009), ("F32 exact", 1.0001), ("Q4_K_M", 0.995)):
        assert check_variants.compare("zen4", scaled(name, factor), best()).faults == ()


def test_the_variants_are_those_of_the_pinned_tree() -> None:
    text = (ROOT / "third_party/llama.cpp/ggml/src/CMakeLists.txt").read_text("utf-8")
    x86 = text.partition('GGML_SYSTEM_ARCH STREQUAL "x86")\n        ggml_add_cpu_backend_variant(')
    lines = ("ggml_add_cpu_backend_variant(" + x86[2].partition("elseif")[0]).splitlines()
    named = [line.partition("variant(")[2].rstrip(")").split() for line in lines]
    found = {fields[0]: [f.lower() for f in fields[1:]] for fields in named if fields}
    assert list(found) == list(cpu_variants.VARIANTS)
    spelled = {"sse42": "sse4_2", "avx512": "avx512f avx512cd avx512vl avx512dq avx512bw"}
    spelled |= {"avx512_vbmi": "avx512vbmi"}
    for variant, features in found.items():
        words = " ".join(spelled.get(feature, feature) for feature in features).split()
        assert sorted(words) == sorted(cpu_variants.VARIANTS[variant].split()), variant
