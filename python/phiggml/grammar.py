"""Grammars: what an answer may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phiggml import _core
from phiggml.errors import InputError
from phiggml.json_schema import json_schema_to_gbnf

__all__ = ["Grammar"]


class Grammar:
    """A grammar in llama.cpp's notation (GBNF), parsed and checked. Immutable.

    An answer under it is a text that rule "root" stands for: at each place only tokens are chosen
    with which such a text goes on, and those that end an answer exactly where one is whole.

    Args:
        text: the rules, one a line: `name ::= ...`.

    Raises:
        InputError: it does not parse, with the line and what was expected; a rule is missing,
            defined twice, begins with itself, or can never end; it is too large: at most 2^20 bytes
            and, with repetitions written out, 2^20 parts, 2000 repetitions, and parentheses nested
            200 deep.
        UnsupportedError: it names tokens, `<[1]>`.

    Cost:
        Some microseconds for each part. The GIL is released.

    Source:
        llama.cpp's parser (src/llama-grammar.cpp), and its notation (grammars/README.md).

    Example:
        >>> import phiggml as pg
        >>> grammar = pg.Grammar('root ::= "yes" | "no"')
        >>> str(grammar)
        'root ::= "yes" | "no"'
    """

    __slots__ = ("_core",)

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise InputError(f"grammar: text is {type(text).__name__}, not str.")
        try:
            self._core = _core.grammar.parse(text.encode())
        except UnicodeEncodeError:
            raise InputError(
                "grammar: the text holds lone surrogates, which are no characters. "
                "Correct the grammar."
            ) from None

    @classmethod
    def from_json_schema(cls, schema: Mapping[str, Any] | str | bool) -> Grammar:
        """The grammar of the JSON texts that a schema allows.

        Not all of them: properties come in the schema's order, an object that names properties has
        no others, an array with `prefixItems` (or a list of `items`) has exactly those, integers
        have 16 digits at most.

        Args:
            schema: a mapping, as pydantic's `model_json_schema()` gives it, or JSON text. `{}` and
                True stand for any JSON value, `{"type": "object"}` for any object.

        Raises:
            InputError: it is no JSON schema, no value can satisfy it, or it is too large.
            UnsupportedError: a keyword would go unheeded; the message names it and where it is.
                References within the schema are followed, others never.

        Cost:
            Grows with the schema; at most 10,000 schemas are taken in one. The GIL is released.

        Source:
            llama.cpp's converter (common/json-schema-to-grammar.cpp), after our own check and
            with patterns of our own writing.

        Example:
            >>> import phiggml as pg
            >>> print(pg.Grammar.from_json_schema({"type": "boolean"}))
            root ::= ("true" | "false")
            space ::= | " " | "\\n"{1,2} [ \\t]{0,20}
            <BLANKLINE>
        """
        text = json_schema_to_gbnf(schema)
        try:
            return cls(text)
        except InputError as error:
            raise InputError(
                f"json_schema: the grammar that it becomes is refused: {error}"
            ) from None

    def __str__(self) -> str:
        return self._core.text

    def __repr__(self) -> str:
        text = str(self)
        return f"Grammar({text if len(text) <= 80 else text[:77] + '...'!r})"

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, Grammar) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> tuple[type[Grammar], tuple[str]]:
        return (Grammar, (str(self),))


def chosen_grammar(
    grammar: Grammar | str | None, json_schema: Mapping[str, Any] | str | bool | None
) -> Grammar | None:
    """What an answer may be, said in one of two ways; None where it may be anything.

    Raises:
        InputError, UnsupportedError: as `Grammar` and `from_json_schema`; or both are given.
    """
    if grammar is not None and json_schema is not None:
        raise InputError("generate: both grammar and json_schema are given. Give one of them.")
    if json_schema is not None:
        return Grammar.from_json_schema(json_schema)
    return grammar if grammar is None or isinstance(grammar, Grammar) else Grammar(grammar)


def grammar_state(
    grammar: Grammar | str | None,
    json_schema: Mapping[str, Any] | str | bool | None,
    model: _core.model.Model,
) -> _core.grammar.GrammarState | None:
    """One answer's place in what it may be, or None where it may be anything.

    Raises:
        InputError, UnsupportedError: as `chosen_grammar`; or the model has no vocabulary.
    """
    chosen = chosen_grammar(grammar, json_schema)
    return None if chosen is None else _core.grammar.GrammarState(chosen._core, model)
