"""An answer's parts: its reasoning, its text and its tool calls, told apart while it grows."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from phiggml.chat_tools import CALL_BEGIN, CALL_END, JsonEnd, ToolCall, parse_tool_calls
from phiggml.completion import Chunk, ChunkKind

__all__ = ["MARKERS", "AnswerParts", "Part", "opens_reasoning", "split_chunks"]

THINK_BEGIN, THINK_END = "<think>", "</think>"
MARKERS = (THINK_BEGIN, THINK_END, CALL_BEGIN, CALL_END)
"""What a model writes between the parts, as ordinary text or as tokens of their own."""

_FUNCTOOLS = "functools"
_BETWEEN_CALLS = re.compile(r"\s*,?\s*")


@dataclass(frozen=True)
class Part:
    """A piece of one of an answer's parts.

    Attributes:
        kind: "text", "reasoning" or "tool_call".
        text: what was written; of a tool call its whole JSON.
        tool_calls: what that describes.
        malformed_call: the text looks like a call and describes none.
    """

    kind: ChunkKind
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    malformed_call: bool = False


def opens_reasoning(prompt: str) -> bool:
    """Whether the prompt itself begins the answer's reasoning."""
    return prompt.rstrip().endswith(THINK_BEGIN)


class AnswerParts:
    """Tells an answer's parts apart, however it is cut into pieces; markers come out in none.

    Reasoning is what stands between <think>, as the first thing of an answer or the last of its
    prompt, and </think> or the end; white space around it is left out. A tool call is JSON behind
    <|tool_call|>, with <|/tool_call|> behind or without.

    Args:
        reasoning: the prompt has opened the reasoning.
        functools: functools[...] is a tool call too.
    """

    def __init__(self, *, reasoning: bool = False, functools: bool = False) -> None:
        self._opened = reasoning
        self._begins = (CALL_BEGIN, _FUNCTOOLS) if functools else (CALL_BEGIN,)
        self._begin = re.compile("|".join(map(re.escape, self._begins)))
        self._step: Callable[[], bool] = self._start
        self._held = ""
        # White space that changes nothing yet, so that it need not be looked at with each token.
        self._blanks: list[str] = []
        self._waits = True
        self._final = False
        self._parts: list[Part] = []
        self._json = JsonEnd()
        self._marker = ""
        self._n_scanned = 0

    @property
    def kind(self) -> ChunkKind:
        """What is being written."""
        if self._step in (self._reasoning_start, self._reasoning):
            return "reasoning"
        if self._step == self._start and self._opened:
            return "reasoning"
        return "tool_call" if self._step == self._call else "text"

    def add(self, text: str) -> list[Part]:
        """Takes text on and gives the parts that are certain by now."""
        if self._waits and (not text or text.isspace()):
            self._blanks.append(text)
            return []
        self._take_blanks()
        self._held += text
        parts = self._certain()
        self._waits = self._step not in (self._text, self._call) and self._held.strip() in ("", ",")
        return parts

    def rest(self) -> list[Part]:
        """The end has come: gives what was held back."""
        self._final = True
        self._take_blanks()
        return self._certain()

    def _take_blanks(self) -> None:
        self._held += "".join(self._blanks)
        self._blanks.clear()

    def _certain(self) -> list[Part]:
        while self._step():
            pass
        parts, self._parts = self._parts, []
        return parts

    # Each step takes what it can from the held text and says whether there is more to do.

    def _start(self) -> bool:
        begun = self._held.lstrip()
        if begun.startswith(THINK_BEGIN):
            self._held = begun[len(THINK_BEGIN) :]
            self._opened = True
        elif THINK_BEGIN.startswith(begun) and not self._final:
            return False
        if self._opened:
            self._emit("reasoning", "", empty=True)
        self._step = self._reasoning_start if self._opened else self._text
        return True

    def _reasoning_start(self) -> bool:
        self._held = self._held.lstrip()
        if self._held:
            self._step = self._reasoning
        return bool(self._held)

    def _reasoning(self) -> bool:
        at = self._held.find(THINK_END)
        if at >= 0:
            self._emit("reasoning", self._held[:at].rstrip())
            self._held = self._held[at + len(THINK_END) :]
            self._step = self._text_start
            return True
        n_kept = 0 if self._final else _overlap(self._held, THINK_END)
        sure = self._held[: len(self._held) - n_kept].rstrip()
        self._emit("reasoning", sure)
        self._held = "" if self._final else self._held[len(sure) :]
        return False

    def _text_start(self) -> bool:
        self._held = self._held.lstrip()
        if self._held:
            self._step = self._text
        return bool(self._held)

    def _text(self) -> bool:
        found = self._begin.search(self._held)
        if found is not None:
            self._marker = found[0]
            self._emit("text", self._held[: found.start()])
            self._held = self._held[found.start() :]
            self._begin_call()
            return True
        n_kept = 0 if self._final else max(_overlap(self._held, m) for m in self._begins)
        split = len(self._held) - n_kept
        self._emit("text", self._held[:split])
        self._held = self._held[split:]
        return False

    def _begin_call(self) -> None:
        self._json = JsonEnd()
        self._n_scanned = len(self._marker)
        self._step = self._call

    def _call(self) -> bool:
        scanned = self._n_scanned
        end = self._json.add(self._held[scanned:])
        self._n_scanned = len(self._held)
        if end is not None:
            document = self._held[len(self._marker) : scanned + end]
            calls = parse_tool_calls(document)
            if calls is not None:
                self._emit("tool_call", document.strip(), calls=calls)
                self._held = self._held[scanned + end :]
                self._step = self._after_call
                return True
            self._to_text(scanned + end)
            return True
        if self._json.failed:
            # Where the text went wrong the next call may begin.
            self._to_text(max(scanned + self._json.n_good, 1))
            return True
        if self._final:
            self._to_text(len(self._held))
        return False

    def _to_text(self, n: int) -> None:
        is_word = self._marker == _FUNCTOOLS and not self._json.begun
        self._emit("text", self._held[:n], malformed=not is_word)
        self._held = self._held[n:]
        self._step = self._text

    def _after_call(self) -> bool:
        between = _BETWEEN_CALLS.match(self._held)
        n = between.end() if between else 0
        rest = self._held[n:]
        begun = self._held.lstrip()
        if begun.startswith(CALL_END):
            self._held, self._step = begun[len(CALL_END) :], self._after_end
            return True
        if not self._final and (not rest or CALL_END.startswith(begun)):
            return False
        if rest.startswith("{"):
            self._marker = self._held[:n]
            self._begin_call()
            return True
        self._step = self._after_end
        return True

    def _after_end(self) -> bool:
        begun = self._held.lstrip()
        if not begun:
            self._held = "" if self._final else self._held
            return False
        if any(begun.startswith(marker) for marker in self._begins):
            self._held = begun
        elif not self._final and any(marker.startswith(begun) for marker in self._begins):
            return False
        self._step = self._text
        return True

    def _emit(
        self,
        kind: ChunkKind,
        text: str,
        *,
        calls: tuple[ToolCall, ...] = (),
        malformed: bool = False,
        empty: bool = False,
    ) -> None:
        if text or empty:
            self._parts.append(Part(kind, text, calls, malformed))


def split_chunks(chunks: Iterable[Chunk], parts: AnswerParts) -> Iterator[Chunk]:
    """The chunks of an answer, each of which belongs to one of its parts."""
    has_calls = False
    for chunk in chunks:
        found = parts.add(chunk.text)
        reason = chunk.finish_reason
        if chunk.timings is not None:
            found += parts.rest()
        has_calls = has_calls or any(part.tool_calls for part in found)
        if reason == "stop" and has_calls:
            reason = "tool_calls"
        pieces = [
            Chunk(
                part.text,
                None,
                kind=part.kind,
                tool_calls=part.tool_calls,
                malformed_call=part.malformed_call,
            )
            for part in found
        ] or [Chunk("", None, kind=parts.kind)]
        yield from pieces[:-1]
        yield dataclasses.replace(
            pieces[-1],
            token=chunk.token,
            finish_reason=reason,
            timings=chunk.timings,
            logprobs=chunk.logprobs,
        )


def _overlap(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the beginning of `marker`."""
    for n in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[-n:]):
            return n
    return 0
