"""Chat templates: what transformers renders, and what hostile ones may not do."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import phiggml as pg

DATA = Path(__file__).parent / "data"
USER = [{"role": "user", "content": "Hi"}]


def test_templates_render_as_transformers_renders_them(nano_model: pg.Model) -> None:
    cases = json.loads((DATA / "chat_phi3_nano.json").read_text("utf-8"))
    assert len(cases) >= 4
    for case in cases:
        prompt = nano_model.chat_prompt(
            case["messages"], add_generation_prompt=case["add_generation_prompt"]
        )
        assert prompt == case["text"]


HOSTILE = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ messages.append(1) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ lipsum.__globals__ }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{% set f = '{0.__class__.__init__.__globals__}'.format %}{{ f(messages) }}",
    "{% for a in range(10**9) %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{{ 10**10**10 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ 'x'|center(10**10) }}",
    "{{ 'x'|indent(10**10) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% if %}",
    "{{ messages[5].content }}{{ 1/0 }}",
    "{{ unknown_function() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
]


@pytest.mark.parametrize("template", HOSTILE)
def test_hostile_templates(template: str) -> None:
    before = sys.gettrace()
    start = time.monotonic()
    try:
        text = pg.render_chat(template, USER)
    except pg.FormatError as error:
        assert str(error).startswith("chat: ")
    else:
        # What the sandbox turns into nothing is harmless too.
        assert "class" not in text and "root:" not in text
    assert time.monotonic() - start < 5
    assert sys.gettrace() is before


def test_a_template_may_refuse() -> None:
    with pytest.raises(pg.InputError, match="no system turns"):
        pg.render_chat("{{ raise_exception('no system turns') }}", USER)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "Hi",
        None,
        ["Hi"],
        [{"role": "user"}],
        [{"content": "Hi"}],
        [{"role": "user", "content": 5}],
    ],
)
def test_wrong_messages(messages: Any) -> None:
    with pytest.raises(pg.InputError, match="chat"):
        pg.render_chat("x", messages)


def test_what_real_templates_use() -> None:
    template = (
        "{%- set ns = namespace(n=0) -%}"
        "{%- for m in messages if m['role'] != 'system' -%}"
        "{%- set ns.n = ns.n + 1 -%}{{ bos_token if loop.first }}[{{ m['content'] | trim }}]"
        "{%- if loop.last and add_generation_prompt %}>{% endif -%}"
        "{%- endfor -%}{{ ns.n }}{{ {'a': 'é'} | tojson }}"
    )
    text = pg.render_chat(template, [*USER, *USER], special_tokens={"bos_token": "<s>"})
    assert text == '<s>[Hi][Hi]>2{"a": "é"}'
