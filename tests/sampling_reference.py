"""What each sampler does to a distribution, from its definition, in float64 and without haste."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import phiggml as pg

Floats = npt.NDArray[np.float64]
Piece = Callable[[int], bytes]


@dataclass
class Drawable:
    """Tokens in the order in which a draw walks through them, with their probabilities."""

    tokens: npt.NDArray[np.int64]
    probabilities: Floats

    def fits(self, token: int, share: float, tolerance: float = 2e-6) -> bool:
        """Whether `share` of the probability, in order, ends in this token."""
        place = np.flatnonzero(self.tokens == token)
        if len(place) == 0:
            return False
        ends = np.cumsum(self.probabilities)
        end = ends[place[0]]
        return bool(end - self.probabilities[place[0]] - tolerance <= share <= end + tolerance)


def uniforms(seed: int, n: int) -> Floats:
    """Of MT19937: 64 bits each, the low half first, as a share of 2^64."""
    words = np.random.RandomState(seed).randint(0, 2**32, 2 * n, dtype=np.uint32).astype(np.float64)
    return (words[0::2] + words[1::2] * 2.0**32) / 2.0**64


def softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def penalized(logits: Floats, history: Sequence[int], s: pg.Sampling) -> Floats:
    """Repeat penalty as in CTRL (negative logits multiplied), the others as OpenAI define them."""
    out = logits.copy()
    recent = list(history)[-s.penalty_last_n :] if s.penalty_last_n else []
    for token in set(recent):
        scale = s.repeat_penalty if out[token] <= 0 else 1 / s.repeat_penalty
        out[token] = out[token] * scale - s.presence_penalty
        out[token] -= recent.count(token) * s.frequency_penalty
    return out


def dried(logits: Floats, history: Sequence[int], s: pg.Sampling, piece: Piece) -> Floats:
    """For each earlier token: how long a text before it is also the end of the whole text."""
    out = logits.copy()
    recent = list(history)[-s.dry_penalty_last_n :] if s.dry_penalty_last_n else []
    breakers = [text.encode() for text in s.dry_sequence_breakers]
    pieces = [piece(token) for token in history][len(history) - len(recent) :]
    before = b"".join(piece(token) for token in history[: len(history) - len(recent)])
    most = 0
    for n in range(1, len(recent) + 1):
        start = len(before) + sum(len(p) for p in pieces[: len(recent) - n])
        end = start + len(pieces[len(recent) - n])
        text = before + b"".join(pieces)
        ends = {i + len(b) for b in breakers for i in range(len(text)) if text[i:].startswith(b)}
        if any(start < at <= end for at in ends):
            break
        most = n
    lengths: dict[int, int] = {}
    for place in range(1, len(recent)):
        n = 0
        while n < place and recent[place - 1 - n] == recent[-1 - n]:
            n += 1
        n = min(n, most)
        token = recent[place]
        if n >= s.dry_allowed_length and not any(b in piece(token) for b in breakers):
            lengths[token] = max(lengths.get(token, 0), n)
    for token, n in lengths.items():
        out[token] -= s.dry_multiplier * s.dry_base ** (n - s.dry_allowed_length)
    return out


def _mass_kept(keys: Floats, p: Floats, share: float, *, beyond: bool) -> npt.NDArray[np.bool_]:
    """The first by key, as many as it takes to have `share`, or more than it."""
    order = np.argsort(keys, kind="stable")
    sums = np.cumsum(p[order])
    n = int(np.searchsorted(sums, share, side="right" if beyond else "left")) + 1
    kept = np.zeros(len(p), bool)
    kept[order[:n]] = True
    return kept


def drawable(logits: Floats, s: pg.Sampling, *, excludes: bool = False) -> Drawable:
    """From top_n_sigma to temperature; `excludes` says what chance decided for XTC."""
    tokens = np.flatnonzero(np.isfinite(logits))
    x = logits[tokens]
    if s.top_n_sigma > 0:
        kept = x >= x.max() - s.top_n_sigma * x.std()
        tokens, x = tokens[kept], x[kept]
    if s.top_k > 0:
        kept = np.argsort(-x, kind="stable")[: s.top_k]
        tokens, x = tokens[kept], x[kept]
    if s.typical_p < 1:
        p = softmax(x)
        surprise = -np.log(p)
        distance = np.abs(surprise - (p * surprise).sum())
        kept = _mass_kept(distance, p, s.typical_p, beyond=True)
        tokens, x = tokens[kept], x[kept]
    if s.top_p < 1:
        kept = _mass_kept(-x, softmax(x), s.top_p, beyond=False)
        tokens, x = tokens[kept], x[kept]
    if s.min_p > 0:
        kept = softmax(x) >= s.min_p * softmax(x).max()
        tokens, x = tokens[kept], x[kept]
    if excludes:
        p = softmax(x)
        reach = np.flatnonzero(p >= s.xtc_threshold)
        if len(reach) > 1:
            last = reach[np.lexsort((-reach, p[reach]))[0]]
            kept = (p < s.xtc_threshold) | (np.arange(len(p)) == last)
            tokens, x = tokens[kept], x[kept]
    temperature = s.temperature
    if s.dynatemp_range > 0 and len(x) > 1:
        p = softmax(x)
        entropy = -(p * np.log(p)).sum() / np.log(len(p))
        low, high = max(0.0, temperature - s.dynatemp_range), temperature + s.dynatemp_range
        temperature = low + (high - low) * entropy**s.dynatemp_exponent
    return Drawable(tokens, softmax(x / temperature))


def mirostat_drawable(logits: Floats, s: pg.Sampling, most: float) -> Drawable:
    """Algorithms 1 and 2 of arXiv 2007.14966; `most` is their mu."""
    order = np.argsort(-logits, kind="stable")[: int(np.isfinite(logits).sum())]
    x = logits[order] / s.temperature
    p = softmax(x)
    if s.mirostat == 2:
        n = max(1, int((-np.log2(p) <= most).sum()))
    else:
        ranks = np.arange(1, min(100, len(p)))
        t = np.log((ranks + 1) / ranks)
        b = np.log(p[: len(ranks)] / p[1 : len(ranks) + 1])
        exponent = (t * b).sum() / (t * t).sum()
        excess = exponent - 1
        number = excess * 2**most / (1 - float(len(logits)) ** -excess)
        n = max(1, int(min(number ** (1 / exponent), len(p))))
    return Drawable(order[:n], softmax(x[:n]))
