"""Fake quantization for phi3-nano: its weights learn to survive four-bit rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

BLOCK = 32
BLOCKS_PER_GROUP = 8


def round_blocks(weights: torch.Tensor, bits: int) -> torch.Tensor:
    """Round rows to ``bits`` with a scale and a minimum per 32 weights, themselves of 6 bits.

    This has the structure of ggml's Q4_K and Q5_K (super-blocks of 256) but takes the extremes
    of a block as they are, without ggml's search for better scales.
    """
    blocks = weights.reshape(-1, BLOCKS_PER_GROUP, BLOCK)
    low = blocks.amin(-1, keepdim=True).clamp(max=0)
    scale = (blocks.amax(-1, keepdim=True) - low) / (2**bits - 1)
    scale_unit = scale.amax(1, keepdim=True) / 63
    low_unit = -low.amin(1, keepdim=True) / 63
    scale = (scale / scale_unit.clamp(min=1e-20)).round() * scale_unit
    low = (low / low_unit.clamp(min=1e-20)).round() * low_unit
    codes = ((blocks - low) / scale.clamp(min=1e-20)).round().clamp(0, 2**bits - 1)
    return (codes * scale + low).reshape(weights.shape)


@contextmanager
def rounded(model: torch.nn.Module, bits: int) -> Iterator[None]:
    """Run the body with every matrix rounded; the exact weights return afterwards.

    Gradients taken inside belong to the rounded weights and are applied to the exact ones, which
    is the straight-through estimator.
    """
    exact: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                exact.append((weight, weight.detach().clone()))
                weight.copy_(round_blocks(weight, bits))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, values in exact:
                weight.copy_(values)
