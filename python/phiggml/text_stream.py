"""Text from the bytes of tokens: whole characters only, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from phiggml import _core

__all__ = ["TextStream", "text_stream"]

TextStream = _core.text_stream.TextStream


def text_stream(stops: Sequence[str], *, strip_space: bool) -> TextStream:
    """A stream that ends before the first of the stop texts.

    Raises:
        InputError: one of them is empty, or together they have more than 16 MiB.
    """
    # Half a surrogate pair is no UTF-8, and in no text: a stop text that has one is not found.
    return TextStream([stop.encode("utf-8", "surrogatepass") for stop in stops], strip_space)
