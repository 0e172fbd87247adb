"""Write the chats of the tests as transformers renders them.

    python tools/reference_chats.py

Templates are those of tests/data/templates. They are written for these tests after what is public
of the released ones: markers, order of the parts, roles, what is left out, and the constructs of
Jinja2 that they use (model cards of Phi-3, Phi-3.5, Phi-4, Phi-4-mini and Phi-4-reasoning; the test
data and templates of llama.cpp). Fixed texts of the released ones are replaced by our own.
phi-4-reasoning stands for -plus too; phi-4-mini for the text part of Phi-4-multimodal. No release
has phi-4-mini-functions (the structure in which vLLM serves Phi-4-mini) and opens-thinking.
Needs transformers and tokenizers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"

LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>"}
BPE_TOKENS = {
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Says what the weather is like. Größe & <b>units</b>: °C",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "such as 北京"},
                "days": {"type": "integer", "minimum": 1, "default": 3},
                "exact": {"type": "boolean"},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {"name": "now", "description": "The time.", "parameters": {"zone": {"type": "str"}}}
CALL = {
    "type": "function",
    "id": "call_1",
    "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2.0}},
}
CALL_IN_TEXT = {"type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}
SYSTEM = {"role": "system", "content": "You are terse."}
HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello."}
BYE = {"role": "user", "content": "Bye"}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": '{"degrees": 21}'}

CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": [HI]},
    {"messages": [SYSTEM, HI]},
    {"messages": [SYSTEM, HI, HELLO, BYE]},
    {"messages": [HI, HELLO]},
    {"messages": [{"role": "system", "content": ""}, HI]},
    {"messages": [HI, SYSTEM, BYE]},
    {"messages": [{"role": "user", "content": " \n\t two\r\nlines \u2028 and blanks  \n"}]},
    {"messages": [{"role": "user", "content": "Grüße, 北京 🙂 👩‍👩‍👧‍👦 e\u0301 \ufeff\u200b\x7f"}]},
    {"messages": [{"role": "user", "content": "<|end|><|im_end|><|user|>{{ 7*7 }}{% x %}</s>&<"}]},
    {"messages": [HI, {"role": "assistant", "content": "<think>\nHm. \n</think>\n\nYes."}, BYE]},
    {"messages": [HI], "tools": [WEATHER, CLOCK]},
    {"messages": [SYSTEM, HI], "tools": [WEATHER]},
    {"messages": [{**SYSTEM, "tools": json.dumps([CLOCK])}, HI]},
    {"messages": [{**SYSTEM, "tools": None}, HI]},
    {"messages": [HI, {**HELLO, "content": "", "tool_calls": [CALL]}, RESULT, BYE]},
    {
        "messages": [HI, {**HELLO, "content": None, "tool_calls": [CALL, CALL_IN_TEXT]}, RESULT],
        "tools": [WEATHER, CLOCK],
    },
    {"messages": [HI, {**HELLO, "tool_calls": None}, BYE]},
    {"messages": [HI, {**HELLO, "reasoning": "They greet."}, BYE]},
    {"messages": [HI], "documents": [{"title": "A", "text": "B"}]},
    {"messages": [HI], "variables": {"enable_thinking": False, "eos_token": "<mine>"}},
    {"messages": [{"role": "critic", "content": "no such role"}, HI]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "in blocks"}]}]},
    {"messages": [HI, HELLO], "continue_final_message": True},
    {"messages": [HI, {"role": "assistant", "content": "The answer is "}]}
    | {"continue_final_message": True},
    {"messages": [SYSTEM, BYE], "continue_final_message": "content"},
]

TEMPLATES = {
    "phi-3-mini-first": LLAMA_TOKENS,
    "phi-3-mini": LLAMA_TOKENS,
    "phi-3-medium": LLAMA_TOKENS,
    "phi-3.5-mini": LLAMA_TOKENS,
    "phi-3.5-moe": LLAMA_TOKENS,
    "phi-3.5-vision": LLAMA_TOKENS,
    "phi-4-first": BPE_TOKENS,
    "phi-4": {**BPE_TOKENS, "eos_token": "<|im_end|>"},
    "phi-4-mini": BPE_TOKENS,
    "phi-4-mini-functions": BPE_TOKENS,
    "phi-4-mini-reasoning": BPE_TOKENS,
    "phi-4-reasoning": {**BPE_TOKENS, "eos_token": "<|im_end|>"},
    "opens-thinking": {**BPE_TOKENS, "eos_token": "<|im_end|>"},
}

# What else templates say, one construct each, rendered with CONTEXT.
CONTEXT: dict[str, Any] = {
    "messages": [SYSTEM, {**HI, "reasoning": "hm"}],
    "tools": [WEATHER],
    "documents": [{"title": "T", "text": "one\n\ntwo"}],
    "variables": {"flag": True, "nothing": None, "number": 1.5, "nested": {"b": 1, "a": [2, "é"]}},
}
EXPRESSIONS = [
    "{{ nested | tojson }}",
    "{{ nested | tojson(indent=2) }}",
    "{{ nested | tojson(ensure_ascii=True) }}",
    "{{ nested | tojson(sort_keys=true) }}",
    "{{ nested | tojson(separators=(',', ':')) }}",
    "{{ nested | tojson(False, 1, (';', '=')) }}",
    "{{ nested | tojson(indent='\t') }}",
    "{{ '<b>\\'\"&' | tojson }}{{ none | tojson }}{{ number | tojson }}{{ flag | tojson }}",
    "{{ undefined_thing | tojson }}",
    "{{ tools | tojson(indent=4) | indent(3) }}",
    "{{ documents[0].text | indent }}|{{ documents[0].text | indent(2, true, true) }}",
    "{{ documents[0].text | indent('> ', first=true) }}|{{ documents[0].text | indent(width=1) }}",
    "{{ 'ab' | center(7) }}|{{ 'a b c d' | wordwrap(3) }}|{{ 'abc' | center(width=1) }}",
    "{{ nested }}{{ none }}{{ flag }}{{ number }}{{ undefined_thing }}",
    "{{ undefined_thing.attribute }}",
    "{{ 'a' + undefined_thing }}",
    "{{ 'a' ~ undefined_thing ~ 1 ~ none ~ [1] }}",
    "{{ tools is defined }}{{ documents is none }}{{ messages[0].nothing is defined }}",
    "{{ add_generation_prompt }}{{ bos_token }}{{ pad_token is defined }}{{ eos_token }}",
    "{{ messages[1].thinking }}{{ messages[1].reasoning_content }}{{ messages[1] | length }}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for i in range(9) %}{% if i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% generation %}a{% set x = 1 %}{{ x }}{% endgeneration %}{{ x is defined }}",
    "  {%- generation -%}  b  {%- endgeneration -%}  c",
    "{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ ns }}",
    "{{ namespace(_a=1) }}",
    "{% set ns = namespace() %}{% set ns._a = 1 %}",
    "{{ namespace({'a': 1}, b=2).b }}{{ dict(a=1, b=2) }}{{ dict([('k', 'v')]).k }}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}",
    "{% set j = joiner(', ') %}{{ j() }}a{{ j() }}b",
    "{{ strftime_now('%%') }}",
    "{{ raise_exception('no') }}",
    "{{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'eq',"
    " 'user') | list | length }}",
    "{{ messages | map(attribute='role') | map('upper') | list }}{{ [3, 1] | sort }}",
    "{{ 'x-y-x' | replace('x', 'z') }}{{ 'x-y-x' | replace('x', 'z', 1) }}{{ 'aXb'.split('X') }}",
    "{{ 'x-y'.replace('x', 'z') }}{{ ' s '.strip() }}{{ 'abc'.startswith('a') }}",
    "{{ 'a'.join('xy') }}",
    "{{ ', '.join(messages | map(attribute='role')) }}{{ 'a{}c{k}'.format('b', k=1) }}",
    "{{ 'ab'[::-1] }}{{ messages[-1]['role'] }}{{ messages[1:] | length }}{{ 'x' * 3 }}",
    "{{ [0] * 2 }}",
    "{{ {'a': 1}.items() | list }}{{ {'b': 1, 'a': 2} | dictsort }}{{ {'a': 1} | items | list }}",
    "{{ (1, 2) }}{{ (1,) }}{% for a, b in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}",
    "{% set a, b = 1, 2 %}{{ b }}",
    "{{ 7 // 2 }}{{ 7 % 3 }}{{ 2 ** 5 }}{{ 7 / 2 }}{{ -1 }}{{ [1] + [2] }}{{ 1.25 | round(1) }}",
    "{{ [1, 2, 3] | batch(2, 0) | list }}{{ [1, 2, 3] | slice(2) | list }}{{ [1, 2] | sum }}",
    "{{ 'a' if flag else 'b' }}{{ 'c' if nothing }}{{ not flag }}{{ nothing or 'd' }}",
    "{% macro m(x, y=2) -%} {{ x }}{{ y }}{{ caller() if caller }} {%- endmacro %}{{ m(1) }}"
    "{% call m(3) %}c{% endcall %}",
    "{% filter upper %}a{{ flag }}{% endfilter %}{% set t %}b{% endset %}{{ t }}",
    "a  \n   {% if true %}\n  b\n  {% endif %}  \n c\n\n",
    "{#- note -#}  a {# b #}  \n{{- 'c' -}}  d\n",
    "{%+ if true %} a{% endif +%}\n b",
    "{% raw %}{{ x }}{% endraw %}{{ '{{' }}",
    "{{ 'é' | upper }}{{ 'straße' | title }}{{ 'İ' | lower }}{{ 'a\u2028b'.splitlines() }}",
    "{{ '5' | int + 1 }}{{ '2.5' | float }}{{ 5 | string + 'x' }}{{ 'abc' | first }}",
    "{{ 'x' is string }}",
    "{{ '<b>' | e }}{{ '<b>' | safe }}{{ '<a>x</a>' | striptags }}{{ 'a b' | urlencode }}",
    "{{ 'abcdef' | truncate(4, true, '') }}{{ 'a' in 'ab' }}{{ nested is mapping }}",
    "{{ tools is iterable }}",
    "{{ 1 / 0 }}",
    "{{ messages[9] }}{{ messages[9].role }}",
    "{{ no_such_filter_here | no_such_filter }}",
    "{{ messages.append(1) }}",
    "{{ ''.__class__ }}",
    "{% set x = 1 %}{% for i in [1, 2] %}{% set x = i %}{% endfor %}{{ x }}",
    "{% for i in [] %}a{% else %}empty{% endfor %}{{ loop is defined }}",
    "{% for i in [1, 2] recursive %}{{ i }}{{ loop([]) if loop.index == 1 }}{% endfor %}",
    "{% with a = 1 %}{{ a }}{% endwith %}{{ a is defined }}{% do 1 %}",
    "{% block b %}in a block{{ flag }}{% endblock %}",
    "{% autoescape true %}{{ '<' }}{{ '<' ~ '>' }}{% endautoescape %}{{ '<' }}",
]


def tokenizer(special_tokens: dict[str, str]) -> PreTrainedTokenizerFast:
    """A tokenizer that has no words, for its renderer and its special tokens."""
    words = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, **special_tokens)


def rendered(
    renderer: PreTrainedTokenizerFast, template: str, *, chat: dict[str, Any], opens: bool
) -> str | None:
    """The chat's text; None where transformers raises."""
    try:
        text: str = renderer.apply_chat_template(
            chat["messages"],
            tools=chat.get("tools"),
            documents=chat.get("documents"),
            chat_template=template,
            add_generation_prompt=opens,
            continue_final_message=chat.get("continue_final_message", False),
            tokenize=False,
            **chat.get("variables", {}),
        )
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError):
        return None
    return text


def cases(chats: list[dict[str, Any]]) -> list[tuple[dict[str, Any], bool]]:
    """Each chat with and without the opening of an answer, where it can have one."""
    return [
        (chat, opens)
        for chat in chats
        for opens in ((False,) if chat.get("continue_final_message") else (True, False))
    ]


def write(name: str, document: Any) -> None:
    """Writes a JSON file with an entry a line."""
    rows = document if isinstance(document, list) else document["texts"]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    text = f"[\n{lines}\n]\n"
    if not isinstance(document, list):
        tokens = json.dumps(document["special_tokens"])
        text = f'{{"special_tokens": {tokens},\n"texts": {text.rstrip()}}}\n'
    (DATA / name).write_text(text, "utf-8")


def main() -> None:
    """Writes chat_conversations.json, chat_<template>.json and chat_expressions.json."""
    inputs = cases(CONVERSATIONS)
    write(
        "chat_conversations.json",
        [{**chat, "add_generation_prompt": opens} for chat, opens in inputs],
    )
    for name, special_tokens in TEMPLATES.items():
        template = (DATA / "templates" / f"{name}.jinja").read_text("utf-8")
        renderer = tokenizer(special_tokens)
        texts = [rendered(renderer, template, chat=chat, opens=opens) for chat, opens in inputs]
        write(f"chat_{name}.json", {"special_tokens": special_tokens, "texts": texts})
        print(f"{name}: {sum(text is not None for text in texts)} of {len(texts)} chats rendered")
    renderer = tokenizer(LLAMA_TOKENS)
    write(
        "chat_expressions.json",
        [
            [CONTEXT],
            *(
                [template, rendered(renderer, template, chat=CONTEXT, opens=True)]
                for template in EXPRESSIONS
            ),
        ],
    )


if __name__ == "__main__":
    main()
