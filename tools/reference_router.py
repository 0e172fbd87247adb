"""How often the near-tie rule of sparsemixer occurs, and how far each choice is from another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reference_logits import follow_released_phimoe, logits_of

BOTH = 2  # times the jitter on either side


@dataclass(frozen=True)
class RouterCount:
    """Of all routed tokens: how many, those with a first and a second weight below 1, the margin.

    ``margin`` is by how much a score may change, at least, before the experts or the set of scores
    that a weight is shared among would change.
    """

    routed: int
    first_shared: int
    second_shared: int
    margin: float


def _margin(scores: np.ndarray, jitter: float) -> float:
    """The smallest distance of one token's scores to a change of either choice."""
    rest = np.sort(scores)[::-1].astype(np.float64)
    distances = []
    for _ in range(2):
        best, others = rest[0], rest[1:]
        factor = np.maximum(np.abs(others), best)
        gaps = best - others
        distances += [gaps.min(), np.abs(gaps - BOTH * jitter * factor).min()]
        rest = others
    return float(min(distances))


def count_router(model: torch.nn.Module, tokens: np.ndarray) -> RouterCount:
    """Evaluate ``tokens`` by the released rules and look at every router."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(_module: Any, _inputs: Any, output: tuple[torch.Tensor, ...]) -> None:
        seen.append((output[0], output[1]))

    follow_released_phimoe(model, len(tokens))
    layers: Any = model.model.layers
    hooks = [layer.mlp.router.register_forward_hook(look) for layer in layers]
    logits_of(model, tokens)
    for hook in hooks:
        hook.remove()
    scores = torch.cat([s for s, _ in seen]).numpy()
    weights = torch.cat([w for _, w in seen]).numpy()
    jitter = float(model.config.router_jitter_noise)
    return RouterCount(
        routed=len(scores),
        first_shared=int((weights[:, 0] < 1).sum()),
        second_shared=int((weights[:, 1] < 1).sum()),
        margin=min(_margin(row, jitter) for row in scores),
    )
