"""Files of fewer bits agree with F32 about the best next token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import phiggml as pg
from best_token import agreement, all_logits, random_texts
from logits_reference import KINDS

AGREEMENT = {"BF16": 0.99, "Q8_0": 0.97}


@pytest.mark.parametrize("name", list(KINDS))
def test_the_best_token_is_that_of_f32(name: str, tmp_path: Path) -> None:
    logits, texts = {}, random_texts(KINDS[name])
    for type in ("F32", *AGREEMENT):
        path = tmp_path / f"{name}-{type}.gguf"
        pg.convert(KINDS[name].folder, path, type)
        logits[type] = all_logits(pg.Model(path), texts)
    truth = logits["F32"]
    for type, least in AGREEMENT.items():
        assert agreement(logits[type], truth) >= least, type
        assert not np.array_equal(logits[type], truth)
