"""The sandbox of chat templates: the names that transformers gives them, within limits."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import jinja2
import jinja2.meta
from jinja2 import nodes, utils
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import Template
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from phiggml.chat_limits import (
    MOST_CHARACTERS,
    STRUCTURES,
    LimitError,
    Limits,
    check_call,
    check_depth,
    check_made,
    check_operation,
    check_time,
    check_weight,
    spend,
)

__all__ = ["RefusalError", "compiled", "names_read", "rendered"]

_REMOVED_FILTERS = ("format", "urlize", "xmlattr")
MOST_SOURCE = 64 << 10
_MOST_INDENT = 64
_MOST_PROGRAM = 4 << 20
_MOST_REFUSAL = 1000


class RefusalError(Exception):
    """What a template says with raise_exception."""


@functools.lru_cache(maxsize=16)
def compiled(template: str) -> Template:
    """The template's program. Compiling runs none of it, not even what is constant."""
    _check_length(template)
    return _environment().from_string(template)


def rendered(template: str, variables: Mapping[str, Any]) -> str:
    """What the template makes of the variables.

    Raises:
        RefusalError, LimitError, jinja2.TemplateError, and what Python raises inside a template.
    """
    program = compiled(template)
    pieces: list[str] = []
    n_characters = 0
    with Limits():
        for piece in program.generate(variables):
            n_characters += len(piece)
            if n_characters > MOST_CHARACTERS:
                raise LimitError(f"makes more than {MOST_CHARACTERS} characters")
            pieces.append(piece)
    return "".join(pieces)


@functools.lru_cache(maxsize=16)
def names_read(template: str) -> tuple[frozenset[str], frozenset[str]]:
    """The variables that a template asks for, and the keys and attributes that it reads."""
    _check_length(template)
    tree = _environment().parse(template)
    variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
    keys = {node.attr for node in tree.find_all(nodes.Getattr)}
    for node in tree.find_all(nodes.Getitem):
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            keys.add(node.arg.value)
    return variables, frozenset(keys)


def _check_length(template: str) -> None:
    if len(template) > MOST_SOURCE:
        raise LimitError(f"is longer than {MOST_SOURCE} characters")


class _Generation(Extension):
    """{% generation %}: transformers marks the assistant's text with it; here it is the text."""

    tags = {"generation"}  # noqa: RUF012  (as in the base)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call block, as in transformers: names that are set inside are gone behind it.
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(utils.Namespace):
    """As transformers': no names that begin with an underscore."""

    def __init__(*arguments: Any, **named: Any) -> None:  # a template may say namespace(self=1)
        self, values = arguments[0], dict(*arguments[1:], **named)
        for name in values:
            _check_name(name)
        utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


class _Generator(CodeGenerator):
    """Has lists, mappings and joined texts weighed when they are made, and the clock looked at."""

    _n_written = 0

    def write(self, x: str) -> None:
        # Some statements name every variable there is: a short source can make a long program.
        self._n_written += len(x)
        if self._n_written > _MOST_PROGRAM:
            raise LimitError("makes too long a program")
        super().write(x)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.part(")
        super().visit_Getitem(node, frame)
        self.write(")")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        self.write("environment.timed(")
        super().visit_Compare(node, frame)
        self.write(")")

    def visit_Test(self, node: nodes.Test, frame: Frame) -> None:  # noqa: N802
        self.write("environment.timed(")
        super().visit_Test(node, frame)
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        join = "(markup_join if context.eval_ctx.autoescape else str_join)"
        self.write(f"{join}(environment.weighed_parts((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self.write("environment.weighed(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self.write("environment.weighed(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx != "load":
            super().visit_Tuple(node, frame)
            return
        self.write("environment.weighed(")
        super().visit_Tuple(node, frame)
        self.write(")")


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, which also looks at what each step would make."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __called: Any, *arguments: Any, **named: Any) -> Any:  # noqa: N805
        is_join = getattr(__called, "__name__", "") == "join"
        if is_join and arguments and isinstance(arguments[0], Iterator):
            arguments = (list(arguments[0]), *arguments[1:])
        check_call(__called, arguments, named)
        return check_made(super().call(__context, __called, *arguments, **named))

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Joins what a macro or block wrote."""
        texts = list(pieces)
        spend(sum(map(len, texts)))
        return "".join(texts)

    @staticmethod
    def weighed(value: Any) -> Any:
        """A list or mapping as the template writes it."""
        return check_made(value)

    @staticmethod
    def part(value: Any) -> Any:
        """What a slice has copied."""
        return check_made(value, is_part=True)

    @staticmethod
    def timed(value: Any) -> Any:
        """What a comparison or a test gave, which may have taken its time."""
        check_time()
        return value

    @staticmethod
    def weighed_parts(parts: tuple[Any, ...]) -> tuple[Any, ...]:
        """What is about to be joined by ~."""
        spend(sum(len(part) if isinstance(part, str) else check_weight(part) for part in parts))
        return parts


@functools.cache
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
        optimized=False,
        finalize=_printable,
    )
    for name in _REMOVED_FILTERS:  # they take patterns, or texts to repeat
        del environment.filters[name]
    environment.filters["tojson"] = _to_json
    for name, made in environment.filters.items():
        environment.filters[name] = _weighed_filter(name, made)
    environment.globals = {
        "cycler": utils.Cycler,
        "dict": _dict,
        "joiner": utils.Joiner,
        "namespace": _Namespace,
        "raise_exception": _raise_exception,
        "range": environment.globals["range"],
        "strftime_now": _strftime_now,
    }
    return environment


@jinja2.pass_context  # so that constants, too, wait for the rendering
def _printable(_context: Any, value: Any) -> Any:
    if isinstance(value, STRUCTURES) and check_weight(value) > MOST_CHARACTERS:
        raise LimitError("makes too long a text")
    return value


# Filters that hand on what they are given, or a part of it.
_STRUCTURAL_FILTERS = frozenset(
    [
        "attr",
        "count",
        "d",
        "default",
        "dictsort",
        "first",
        "groupby",
        "items",
        "last",
        "length",
        "list",
        "map",
        "max",
        "min",
        "random",
        "reject",
        "rejectattr",
        "reverse",
        "select",
        "selectattr",
        "sort",
        "sum",
        "unique",
    ]
)


def _weighed_filter(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    weigh = _FILTER_WEIGHTS.get(name)
    n_passed = 1 if hasattr(made, "jinja_pass_arg") else 0

    @functools.wraps(made)  # which keeps Jinja2's mark that a filter wants the context
    def weighed(*arguments: Any, **named: Any) -> Any:
        values = list(arguments[n_passed:])
        if name not in _STRUCTURAL_FILTERS:
            if values and isinstance(values[0], Iterator):
                values[0] = list(values[0])
            for value in values:
                spend(check_weight(value) if isinstance(value, STRUCTURES) else 0)
        if weigh is not None:
            spend(weigh(*values, **named))
        return check_made(made(*arguments[:n_passed], *values, **named))

    return weighed


def _indent_weight(text: str, width: int | str = 4, *_rest: Any, **_named: Any) -> int:
    step = len(width) if isinstance(width, str) else max(width, 0)
    return len(text) + (len(text.splitlines()) + 1) * step


def _replace_weight(text: Any, old: Any, new: Any, count: int | None = None) -> int:
    whole = str(text)
    return len(whole) + whole.count(str(old)) * len(str(new))


def _join_weight(value: Any, d: Any = "", attribute: Any = None) -> int:
    return int(check_weight(value)) + len(str(d)) * len(value)


def _list_weight(value: Any) -> int:
    return 16 * len(value) if isinstance(value, (str, bytes)) else 0


def _wrap_weight(
    text: str, width: int = 79, break_long: bool = True, wrapstring: str | None = None, *_: Any
) -> int:
    return len(text) * len(wrapstring or "\n")


def _round_weight(_value: Any, precision: int = 0, *_rest: Any, **_named: Any) -> int:
    if abs(precision) > 1000:
        raise LimitError("makes too large a number")
    return 0


def _sum_weight(_value: Any, _attribute: Any = None, start: Any = 0) -> int:
    if not isinstance(start, (int, float)):
        raise LimitError("sums what are no numbers")
    return 0


# What the filters that can make much of little will make.
_FILTER_WEIGHTS: dict[str, Callable[..., int]] = {
    "batch": lambda value, linecount, fill_with=None: max(linecount, 0),
    "center": lambda value, width=80: max(width, 0),
    "indent": _indent_weight,
    "join": _join_weight,
    "list": _list_weight,
    "replace": _replace_weight,
    "round": _round_weight,
    "slice": lambda value, slices, fill_with=None: max(slices, 0) + _list_weight(value),
    "sum": _sum_weight,
    "wordwrap": _wrap_weight,
}


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    widths = [indent if isinstance(indent, int) else len(indent or "")]
    widths += [len(separator) for separator in separators or ()]
    if max(widths) > _MOST_INDENT:
        raise LimitError("makes too long a text")
    if indent is not None:
        spend(check_weight(value) * widths[0] * check_depth(value))
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _dict(*arguments: Any, **named: Any) -> dict[Any, Any]:
    if len(arguments) == 1 and not isinstance(arguments[0], Mapping):
        # One by one, so that the clock is looked at: keys can be made that are slow together.
        made: dict[Any, Any] = {}
        for key, value in arguments[0]:
            made[key] = value
        made.update(named)
        return made
    return dict(*arguments, **named)


def _raise_exception(message: Any) -> None:
    raise RefusalError(str(_printable(None, message))[:_MOST_REFUSAL])


def _strftime_now(format: str) -> str:
    if len(format) > 1000 or re.search(r"%[-_0^#+]*\d{3}", format):
        raise LimitError("asks for too long a time")
    return datetime.now().strftime(format)
