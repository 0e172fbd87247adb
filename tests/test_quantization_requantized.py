"""Sources that are quantized already, of every type, against llama_model_quantize."""

from __future__ import annotations

from pathlib import Path

import pytest

from phiggml.errors import InputError
from phiggml.quantization import QuantizeOptions
from phiggml.recipe import model_types
from quantization_cases import (
    GRIDS,
    Case,
    Upstream,
    call,
    check_case,
    parameters,
    shared_folder,
)

PURE = QuantizeOptions(pure=True)
AGAIN = QuantizeOptions(allow_requantize=True)
HALVES = {"F32", "F16", "BF16"}


def cases() -> list[Case]:
    """Sources that upstream makes (files of one type, and mixtures), and what is made of them."""
    types = [t for t in model_types() if t.startswith("IQ") or not t.endswith(("_S", "_L"))]
    first = [
        *(Case("plain", t, True, PURE, label="-pure", apart=t in GRIDS) for t in types),
        Case("experts", "Q4_K_M"),
        Case("experts", "IQ2_XXS", True, apart=True),
    ]
    again = [
        Case(source.kind, type, imatrix, AGAIN, source=source, apart=source.apart)
        for source in first
        for type, imatrix in (("Q4_K_S", False), ("Q5_0", True))
    ]
    of = {case.type: case for case in first if case.kind == "plain"}
    # Tensors of the wanted type already are copied; without leave, too, where that is all.
    again += [
        Case("plain", "Q8_0", options=PURE, label="-copied", source=of["Q8_0"]),
        Case("plain", "F32", source=of["F32"]),
        Case("plain", "BF16", options=AGAIN, source=of["Q4_K_M"]),
        Case("plain", "F32", options=AGAIN, source=of["IQ4_XS"]),
        Case("plain", "IQ2_XXS", True, AGAIN, source=of["Q8_0"], apart=True),
    ]
    return again


CASES = cases()


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    return Upstream(shared_folder(tmp_path_factory, "upstream-requantized"), CASES)


@pytest.mark.parametrize("case", parameters(CASES))
def test_equal_to_upstream(case: Case, upstream: Upstream, tmp_path: Path) -> None:
    check_case(case, upstream, tmp_path)


@pytest.mark.parametrize("case", parameters(c for c in CASES if c.type == "Q4_K_S"))
def test_only_with_leave(case: Case, upstream: Upstream, tmp_path: Path) -> None:
    refused = Case(case.kind, case.type, source=case.source)
    source = upstream.source(case)
    if case.source is not None and case.source.type in HALVES:
        call(refused, source, tmp_path / "out.gguf")
        return
    with pytest.raises(InputError, match=r"quantized already.*allow_requantize=True"):
        call(refused, source, tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())
