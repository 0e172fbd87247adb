"""Tools of a chat: their definitions for a template, and the calls that a model writes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from phiggml.errors import InputError

__all__ = [
    "CALL_BEGIN",
    "CALL_END",
    "JsonEnd",
    "ToolCall",
    "parse_tool_calls",
    "tools_text",
    "with_written_calls",
]

CALL_BEGIN, CALL_END = "<|tool_call|>", "<|/tool_call|>"
_MOST_DEPTH = 200
_ESCAPED, _QUOTED = "escaped", "quoted"


@dataclass(frozen=True)
class ToolCall:
    """A function that the model asks to have called.

    Attributes:
        name: of the function.
        arguments: by name, as JSON's types.
        id: what a result refers to, where the model gives one.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None

    def as_message(self) -> dict[str, Any]:
        """The call as an entry of a message's "tool_calls".

        Returns:
            {"type": "function", "function": {"name", "arguments"}}, and "id" where there is one.

        Source:
            The form that OpenAI's interface and transformers' templates share.

        Example:
            >>> ToolCall("now", {"zone": "UTC"}).as_message()["function"]
            {'name': 'now', 'arguments': {'zone': 'UTC'}}
        """
        function = {"name": self.name, "arguments": dict(self.arguments)}
        named = {} if self.id is None else {"id": self.id}
        return {"type": "function", **named, "function": function}


def parse_tool_calls(text: str) -> tuple[ToolCall, ...] | None:
    """The calls that a JSON document describes.

    Args:
        text: a mapping with a name and arguments (or parameters), which may be JSON in a string,
            or a list of such; the mapping may also stand under "function".

    Returns:
        The calls, at least one; None when the text is anything else.
    """
    try:
        document = _loaded(text)
        entries = document if isinstance(document, list) else [document]
        return tuple(_call(entry) for entry in entries) or None
    except (ValueError, RecursionError):
        return None


def _call(entry: Any) -> ToolCall:
    if not isinstance(entry, dict):
        raise ValueError("no mapping")
    given_id = entry.get("id")
    if isinstance(entry.get("function"), dict):
        entry = entry["function"]
    name = entry.get("name")
    arguments = entry.get("arguments", entry.get("parameters"))
    if isinstance(arguments, str):
        arguments = _loaded(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict | None):
        raise ValueError("no name or no arguments")
    return ToolCall(name, arguments or {}, given_id if isinstance(given_id, str) else None)


def _loaded(text: str) -> Any:
    document = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    json.dumps(document, ensure_ascii=False).encode()  # lone surrogates are no text
    return document


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(digits)
    return number


class JsonEnd:
    """Finds the end of a list or mapping in text that comes in pieces, each looked at once.

    Attributes:
        begun: a bracket has come.
        failed: what came can be no list or mapping.
        n_good: characters before the one at which the last piece failed.
    """

    def __init__(self) -> None:
        self._open: list[str] = []
        self._inside: str | None = None
        self.begun = False
        self.failed = False
        self.n_good = 0

    def add(self, text: str) -> int | None:
        """Takes text on; how many of its characters end the document, None while it goes on."""
        for i, character in enumerate(text):
            if self._inside == _ESCAPED:
                self._inside = _QUOTED
            elif self._inside == _QUOTED:
                self._inside = {"\\": _ESCAPED, '"': None}.get(character, _QUOTED)
            elif character in "[{":
                self._open.append("]" if character == "[" else "}")
                self.begun = True
                self.failed = len(self._open) > _MOST_DEPTH
            elif not self._open:
                self.failed = not character.isspace()
            elif character == '"':
                self._inside = _QUOTED
            elif character in "]}":
                self.failed = self._open.pop() != character
                if not self._open and not self.failed:
                    return i + 1
            if self.failed:
                self.n_good = i
                return None
        return None


def tools_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """Definitions as Phi-4-mini was shown them: a JSON list of name, description, parameters.

    Args:
        tools: JSON schemas, as OpenAI's interface or transformers take them, or flat ones.

    Returns:
        What stands between <|tool|> and <|/tool|>.

    Raises:
        InputError: they hold what JSON does not: NaN, infinity, or too long a number.

    Source:
        The model card of Phi-4-mini-instruct, "Tool-enabled function-calling format".
    """
    flat = [
        tool["function"] if isinstance(tool.get("function"), Mapping) else tool for tool in tools
    ]
    try:
        return json.dumps(flat, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise InputError(f"chat: tools cannot be written as JSON: {error}.") from None


def with_written_calls(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose tool_calls are written into its content, as the model itself writes them.

    For templates that know the markers and never look at tool_calls.

    Raises:
        InputError: a call has no name, or arguments that are no mapping.
    """
    entries = [
        call.as_message() if isinstance(call, ToolCall) else call for call in message["tool_calls"]
    ]
    try:
        calls = parse_tool_calls(json.dumps(entries))
    except ValueError:
        calls = None
    if calls is None:
        raise InputError("chat: tool_calls hold what is no call with a name and arguments.")
    written = json.dumps(
        [{"name": call.name, "arguments": call.arguments} for call in calls], ensure_ascii=False
    )
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": f"{message.get('content') or ''}{CALL_BEGIN}{written}{CALL_END}"}
