"""Chat templates. They come from model files, so they run in a sandbox with limits."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from phiggml.errors import FormatError, InputError

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["Message", "render_chat"]

Message = Mapping[str, Any]
"""One turn of a chat: {"role": "system" | "user" | "assistant", "content": str, ...}."""

MOST_CHARACTERS = 4 << 20
MOST_SECONDS = 2.0


class _LimitError(Exception):
    """A template went beyond a limit; says which."""


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    special_tokens: Mapping[str, str] | None = None,
) -> str:
    """Renders a chat with a model's own template.

    Args:
        template: Jinja2 source, as `tokenizer.chat_template` holds it.
        messages: the turns, oldest first.
        add_generation_prompt: end with the opening of the assistant's turn.
        special_tokens: what the template may ask for by name, such as {"eos_token": "</s>"}.

    Returns:
        The text of the chat, control tokens spelt out.

    Raises:
        InputError: a message is no mapping with a role and a content, or the template itself
            refuses the conversation (by raise_exception).
        FormatError: the template does not compile, does what the sandbox forbids, fails, takes
            more than 2 seconds, or makes more than 4 Mi characters.

    Cost:
        Imports Jinja2 on first use.

    Source:
        The names that templates use are those of transformers' apply_chat_template.

    Example:
        >>> render_chat("{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}",
        ...             [{"role": "user", "content": "Hi"}])
        'user: Hi;'
    """
    _check_messages(messages)
    variables = {
        **(special_tokens or {}),
        "messages": [dict(message) for message in messages],
        "add_generation_prompt": add_generation_prompt,
    }
    return _rendered(template, variables)


def _rendered(template: str, variables: Mapping[str, Any]) -> str:
    import jinja2

    try:
        return _within_limits(_environment().from_string(template).generate(variables))
    except _RefusalError as refusal:
        raise InputError(f"chat: the model's template refuses these messages: {refusal}") from None
    except _LimitError as limit:
        fault = str(limit)
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as failure:
        fault = f"fails: {failure}"
    except (RecursionError, MemoryError, AttributeError) as failure:
        fault = f"fails: {type(failure).__name__}"
    raise FormatError(f"chat: the model's template {fault}. Pass a template of your own.")


class _RefusalError(Exception):
    """What a template says with raise_exception."""


def _check_messages(messages: Sequence[Message]) -> None:
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise InputError(
            "chat: messages must be a list of at least one {'role', 'content'} mapping."
        )
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InputError(f"chat: message {i} is {type(message).__name__}, not a mapping.")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise InputError(f"chat: message {i} has no {key} that is a string.")


def _environment() -> ImmutableSandboxedEnvironment:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        """The sandbox, which also looks at what arithmetic would make."""

        intercepted_binops = frozenset(["*", "**", "%"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" and not _small_power(left, right):
                raise _LimitError("makes too large a number")
            if operator == "*" and _length(left) * _count(right) + _length(right) * _count(left) > (
                MOST_CHARACTERS
            ):
                raise _LimitError("makes too long a text")
            if operator == "%" and isinstance(left, str):
                raise _LimitError("formats with %, which is not allowed")
            return super().call_binop(context, operator, left, right)

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    for name in ("center", "format", "indent", "wordwrap"):  # they take a width or a pattern
        environment.filters.pop(name, None)
    environment.filters["tojson"] = _to_json
    environment.globals = {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "range": environment.globals["range"],
        "namespace": jinja2.utils.Namespace,
    }
    return environment


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple)) else 0


def _count(value: Any) -> int:
    return max(int(value), 0) if isinstance(value, int) else 0


def _small_power(left: Any, right: Any) -> bool:
    return not (isinstance(left, int) and isinstance(right, int)) or (
        left.bit_length() * max(right, 0) <= 4096
    )


def _to_json(value: Any, indent: int | None = None, **_options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=None if indent is None else min(indent, 8))


def _raise_exception(message: str) -> None:
    raise _RefusalError(message)


def _strftime_now(pattern: str) -> str:
    return time.strftime(pattern[:64])


def _within_limits(pieces: Any) -> str:
    """Joins what a template yields; a trace sees each line it runs, in loops without output too."""
    deadline = time.monotonic() + MOST_SECONDS
    previous = sys.gettrace()

    def watch(_frame: FrameType, _event: str, _argument: Any) -> Callable[..., Any]:
        if time.monotonic() > deadline:
            raise _LimitError(f"takes more than {MOST_SECONDS:g} seconds")
        return watch

    text: list[str] = []
    n_characters = 0
    sys.settrace(watch)
    try:
        for piece in pieces:
            n_characters += len(piece)
            if n_characters > MOST_CHARACTERS:
                raise _LimitError(f"makes more than {MOST_CHARACTERS} characters")
            text.append(piece)
    finally:
        sys.settrace(previous)
    return "".join(text)
