"""Takes facts out of a text: a dataclass becomes a JSON schema, and the answer such a dataclass.

    python examples/structured_output.py phi3.gguf

Under a schema a session chooses among those tokens only with which a JSON text goes on that the
schema allows. So an answer that has ended parses, and has each field, of its type. Whether what it
says is so, no schema can tell: that is the model's part.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import phiggml as pg

T = TypeVar("T")

TEXT = "Phi-3-mini is a model of 3.8 billion parameters, released by Microsoft in April 2024."


@dataclass
class Release:
    """What is asked for. Limits, in JSON Schema's words, keep a small model from never ending."""

    name: Annotated[str, {"minLength": 1, "maxLength": 30}]
    maker: Annotated[str, {"minLength": 1, "maxLength": 30}]
    year: Annotated[int, {"minimum": 2000, "maximum": 2099}]
    kind: Literal["model", "dataset", "program"]
    contexts: Annotated[list[int], {"maxItems": 3}]
    open_weights: bool


def schema_of(kind: Any) -> dict[str, Any]:
    """The JSON schema of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        "type": "object",
        "properties": {field.name: of_hint(hints[field.name]) for field in fields(kind)},
        "required": [field.name for field in fields(kind)],
        "additionalProperties": False,
    }


NAMES: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}


def of_hint(hint: Any) -> dict[str, Any]:
    """The schema of one field: str, int, float, bool, Literal or list, Annotated with limits."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return {**of_hint(inner[0]), **inner[1]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is list:
        return {"type": "array", "items": of_hint(inner[0])}
    return {"type": NAMES[hint]}


def extract(session: pg.Session, text: str, kind: type[T], *, max_tokens: int = 400) -> T:
    """Has a dataclass filled in from a text.

    Raises:
        ValueError: max_tokens were not enough.
    """
    schema = schema_of(kind)
    prompt = f"{text}\n\nGive the facts of this text as JSON:\n{json.dumps(schema)}"
    answer = session.chat(
        [{"role": "user", "content": prompt}],
        json_schema=schema,
        max_tokens=max_tokens,
        sampling=pg.Sampling(temperature=0),
    )
    if answer.finish_reason != "stop":
        raise ValueError(f"The answer has not ended within {max_tokens} tokens: {answer.text}")
    return kind(**json.loads(answer.text))


def choose(session: pg.Session, question: str, answers: list[str]) -> str:
    """One of several answers; the schema is a plain dict here."""
    answer = session.chat(
        [{"role": "user", "content": question}],
        json_schema={"enum": answers},
        sampling=pg.Sampling(temperature=0),
    )
    chosen: str = json.loads(answer.text)
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--text", default=TEXT)
    arguments = parser.parse_args()
    with pg.Session(arguments.model) as session:
        print(extract(session, arguments.text, Release))
        print(choose(session, f"Is this about software?\n\n{arguments.text}", ["yes", "no"]))


if __name__ == "__main__":
    main()
