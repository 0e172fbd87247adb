"""Scores that make sentencepiece's way of merging give what a list of merges gives.

The tokenizers library merges the adjacent pair of lowest rank, the leftmost of equals;
sentencepiece the pair whose whole has the highest score, whatever the halves are. What happens
within a stretch of text, until something joins it with its neighbours, is what happens to it as a
text of its own. So a piece is only ever made of one pair, the last of its own merging. Where each
piece is scored by the rank of that pair, both choose among the same pairs at each step, in the same
order.

It fails for a piece whose own merging ends with two parts that have no merge: sentencepiece would
join them. A piece whose merging ends with more parts is made in neither way.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Merged", "merge_piece", "score_pieces"]

Ranks = Mapping[tuple[str, str], int]


@dataclass(frozen=True)
class Merged:
    """What merging makes of a text: its parts, and the rank of the last merge, if there was one."""

    parts: tuple[str, ...]
    rank: int | None


def merge_piece(text: str, ranks: Ranks) -> Merged:
    """Merges the characters of a text as the tokenizers library does."""
    parts: list[str] = list(text)
    rights, lefts = list(range(1, len(parts) + 1)), list(range(-1, len(parts) - 1))
    end, last = len(parts), None
    queue: list[tuple[int, int, str, str]] = []

    def consider(at: int) -> None:
        if at >= 0 and rights[at] < end:
            pair = parts[at], parts[rights[at]]
            if pair in ranks:
                heapq.heappush(queue, (ranks[pair], at, *pair))

    for i in range(end):
        consider(i)
    while queue:
        rank, at, left, right = heapq.heappop(queue)
        other = rights[at]
        # What was joined meanwhile has another text, or none.
        if other >= end or parts[at] != left or parts[other] != right:
            continue
        parts[at], parts[other], last = left + right, "", rank
        rights[at] = rights[other]
        if rights[at] < end:
            lefts[rights[at]] = at
        consider(lefts[at])
        consider(at)
    return Merged(tuple(part for part in parts if part), last)


def score_pieces(pieces: Iterable[str], ranks: Ranks) -> tuple[dict[str, float], list[str]]:
    """Scores of pieces, as sentencepiece numbers those that it trains: 0, -1, -2...

    Args:
        pieces: in the order of their ids.
        ranks: of merges.

    Returns:
        The score of each piece: those of merges first, by their ranks, then the others by their
        ids. And the pieces for which there is no score, because no merge makes them of two parts.

    Cost:
        A Python loop over all characters, about 0.5 s for 32,000 pieces.
    """
    made: list[tuple[int, str]] = []
    others: list[str] = []
    torn: list[str] = []
    for piece in pieces:
        merged = merge_piece(piece, ranks)
        if merged.rank is not None and len(merged.parts) == 1:
            made.append((merged.rank, piece))
            continue
        others.append(piece)
        if len(merged.parts) == 2:
            torn.append(piece)
    order = [piece for _, piece in sorted(made)] + others
    return {piece: -float(i) for i, piece in enumerate(order)}, torn
