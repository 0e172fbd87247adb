"""Chat templates. They come from model files, so they run in a sandbox with limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from phiggml.chat_tools import ToolCall, tools_text, with_written_calls
from phiggml.errors import FormatError, InputError, UnsupportedError

__all__ = ["Message", "render_chat"]

Message = Mapping[str, Any]
"""One turn of a chat: {"role": "system" | "user" | "assistant", "content": str, ...}."""

_Made = TypeVar("_Made")
# What transformers itself hands to a template.
_OWN_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt")
# A message's reasoning goes by these names; templates read the first, and gpt-oss's the second.
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_MOST_DEPTH = 100
_MOST_FAILURE = 300
# Their messages tell of the program that Jinja2 made, not of the template. SyntaxError: blocks or
# brackets are nested deeper than Python goes.
_OTHER_FAILURES = (
    AssertionError,
    AttributeError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    StopIteration,
    SyntaxError,
)


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool | str = False,
    special_tokens: Mapping[str, str] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Renders a chat with a model's own template.

    Args:
        template: Jinja2 source, as `tokenizer.chat_template` holds it.
        messages: the turns, oldest first. A content may be None, or absent, beside tool_calls,
            which may be ToolCall objects.
        tools: JSON schemas of functions; a template that does not ask for them ignores them.
        documents: mappings with a title and a text, for templates that ask for them.
        add_generation_prompt: end with the opening of the assistant's turn.
        continue_final_message: leave the last message open, to be written on; the name of a field
            instead of "content" may be given. Not together with add_generation_prompt.
        special_tokens: what the template may ask for by name, such as {"eos_token": "</s>"}.
        variables: further names for the template, such as {"enable_thinking": False}.

    Returns:
        The text of the chat, control tokens spelt out.

    Raises:
        InputError: a message is no mapping with a role and a content, tools or documents are no
            lists of mappings, or the template itself refuses the conversation (by
            raise_exception).
        FormatError: the template does not compile, does what the sandbox forbids, fails, takes
            more than 2 seconds, or makes more than 4 Mi characters.

    Cost:
        Imports Jinja2 on first use; the last 16 templates stay compiled.

    Source:
        transformers' apply_chat_template: the names, the filters and what they make.

    Example:
        >>> render_chat("{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}",
        ...             [{"role": "user", "content": "Hi"}])
        'user: Hi;'
    """
    turns = _checked_messages(messages)
    end = None
    if continue_final_message:
        end = _opened(template, turns, continue_final_message, opens_another=add_generation_prompt)
    names = {
        **(special_tokens or {}),
        **_checked_variables({} if variables is None else variables),
        "messages": turns,
        "tools": _checked_mappings("tools", tools),
        "documents": _checked_mappings("documents", documents),
        "add_generation_prompt": add_generation_prompt,
    }
    text = _rendered(template, names)
    return text if end is None else _cut_open(text, end)


def tools_in_place(
    template: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
) -> tuple[Sequence[Message], Sequence[Mapping[str, Any]] | None]:
    """Puts tools, and calls of earlier turns, where a template looks for them.

    Most templates ask for a variable, `tools`. Phi-4-mini's asks for a text under "tools" in the
    system message and knows nothing of tool_calls.

    Raises:
        UnsupportedError: there are tools, and the template looks for none.
        InputError, FormatError: as `render_chat`.
    """
    from phiggml.chat_environment import names_read

    definitions = _checked_mappings("tools", tools)
    turns = _checked_messages(messages)
    if not definitions and not any("tool_calls" in turn for turn in turns):
        return messages, tools
    variables, keys = _guarded(lambda: names_read(template))
    if "tools" in variables:
        return messages, tools
    if definitions and "tools" not in keys:
        raise UnsupportedError(
            "chat: this model's template has no place for tools. Describe them in the system "
            "message yourself, or pass a template of your own to render_chat()."
        )
    if "tools" in keys and "tool_calls" not in keys:
        turns = [with_written_calls(t) if t.get("tool_calls") else t for t in turns]
    if definitions:
        if turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": _TOOLS_SYSTEM})
        turns[0] = {**turns[0], "tools": tools_text(definitions)}
    return turns, None


_TOOLS_SYSTEM = "You are an assistant that can call tools."


def _rendered(template: str, variables: Mapping[str, Any]) -> str:
    from phiggml.chat_environment import rendered

    return _guarded(lambda: rendered(template, variables))


def _guarded(work: Callable[[], _Made]) -> _Made:
    """Does what compiles or runs a template, and says in our words what went wrong."""
    import jinja2

    from phiggml.chat_environment import RefusalError
    from phiggml.chat_limits import LimitError

    try:
        return work()
    except RefusalError as refusal:
        reason = _printable(refusal)
        raise InputError(f"chat: the model's template refuses these messages: {reason}") from None
    except LimitError as limit:
        fault = str(limit)
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as failure:
        fault = f"fails: {_printable(failure)[:_MOST_FAILURE]}"
    except _OTHER_FAILURES as failure:
        fault = f"fails: {type(failure).__name__}"
    raise FormatError(f"chat: the model's template {fault}. Pass a template of your own.")


def _printable(failure: Exception) -> str:
    """Its words, which may quote a text with lone surrogates, as UTF-8 can hold them."""
    return str(failure).encode(errors="backslashreplace").decode()


def _checked_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise InputError(
            "chat: messages must be a list of at least one {'role', 'content'} mapping."
        )
    turns = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InputError(f"chat: message {i} is {type(message).__name__}, not a mapping.")
        _check_message(i, message)
        # Many templates write "None" for a key that is None, and do right where it is absent.
        plain = {
            _plain_key(key): _plain(value) for key, value in message.items() if value is not None
        }
        fields = [plain[key] for key in _REASONING_FIELDS if key in plain]
        if fields:
            plain = {"thinking": fields[0], **plain, "reasoning_content": fields[0]}
        turns.append(plain)
    return turns


def _check_message(i: int, message: Message) -> None:
    if not isinstance(message.get("role"), str):
        raise InputError(f"chat: message {i} has no role that is a string.")
    content, calls = message.get("content"), message.get("tool_calls")
    is_list = isinstance(calls, (list, tuple))
    if calls is not None and not (
        is_list and all(isinstance(c, Mapping | ToolCall) for c in calls)
    ):
        raise InputError(f"chat: message {i}: tool_calls must be a list of calls.")
    if content is None and calls:
        return
    is_blocks = isinstance(content, (list, tuple)) and all(isinstance(b, Mapping) for b in content)
    if not isinstance(content, str) and not is_blocks:
        raise InputError(f"chat: message {i} has no content that is a string.")


def _checked_mappings(
    name: str, given: Sequence[Mapping[str, Any]] | None
) -> list[dict[str, Any]] | None:
    if given is None:
        return None
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Sequence):
        raise InputError(f"chat: {name} is {type(given).__name__}: it must be a list of mappings.")
    for i, item in enumerate(given):
        if not isinstance(item, Mapping):
            raise InputError(f"chat: {name}: item {i} is {type(item).__name__}, not a mapping.")
    return [_plain(item) for item in given]


def _checked_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(variables, Mapping):
        raise InputError(f"chat: variables is {type(variables).__name__}, not a mapping.")
    for name in variables:
        if not isinstance(name, str) or name in _OWN_VARIABLES:
            raise InputError(f"chat: variables cannot hold {name!r}. Pass it as an argument.")
    return {name: _plain(value) for name, value in variables.items()}


def _plain(value: Any, depth: int = 0) -> Any:
    """A copy in Python's own types: methods of anything else are no business of a template."""
    if depth > _MOST_DEPTH:
        raise InputError("chat: messages, tools or variables are nested too deeply.")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, ToolCall):
        if not isinstance(value.arguments, Mapping):
            raise InputError(f"chat: the arguments of a call of {value.name!r} are no mapping.")
        value = value.as_message()
    if isinstance(value, Mapping):
        return {_plain_key(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item, depth + 1) for item in value]
        return items if isinstance(value, list) else tuple(items)
    for base in (str, int, float):
        if isinstance(value, base):
            return base(value) if base is not str else str.__str__(value)
    if isinstance(value, np.generic):
        return _plain(value.item(), depth + 1)
    raise InputError(
        f"chat: a template can be given texts, numbers, lists and mappings, not a "
        f"{type(value).__name__}."
    )


def _plain_key(key: Any) -> Any:
    if key is not None and not isinstance(key, (str, int, float, np.generic)):
        raise InputError(f"chat: {key!r:.100} is no key of JSON. Use texts.")
    return _plain(key)


# Stands at the end of a message that goes on; whether its blank is left tells of stripping.
_OPEN_END = "PHIGGMLGOESONHERE "


def _opened(
    template: str, turns: list[dict[str, Any]], wanted: bool | str, *, opens_another: bool
) -> str:
    """Marks the end of the last message's text, and returns that text."""
    if opens_another:
        raise InputError(
            "chat: continue_final_message leaves the last turn open and add_generation_prompt "
            "opens another. Pass one of them."
        )
    field = wanted if isinstance(wanted, str) else "content"
    last = turns[-1]
    text = last.get(field)
    fields = [field]
    if field in _REASONING_FIELDS:
        fields = [name for name in _REASONING_FIELDS if last.get(name) == text]
    if isinstance(text, list):
        blocks = [block for block in text if isinstance(block.get("text"), str)]
        if blocks:
            text = blocks[-1]["text"]
            blocks[-1]["text"] = text + _OPEN_END
            return str(text)
        text = None
    if not isinstance(text, str) or not any(name in template for name in fields):
        raise InputError(f"chat: continue_final_message: the last message has no {field} to go on.")
    for name in fields:
        last[name] = text + _OPEN_END
    return text


def _cut_open(rendered: str, text: str) -> str:
    tag = _OPEN_END.strip()
    if text.strip() not in rendered or tag not in rendered:
        raise InputError(
            "chat: continue_final_message: the template does not write the last message as it is."
        )
    at = rendered.rindex(tag)
    if rendered.startswith(_OPEN_END, at):
        return rendered[:at]
    # The template has stripped the message, the mark's blank included.
    return rendered[:at].rstrip()
