"""Chat templates: what transformers renders, and what hostile ones may not do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phiggml as pg
from phiggml import chat_limits
from phiggml.chat import tools_in_place
from phiggml.chat_limits import LimitError, Limits
from phiggml.chat_tools import ToolCall

DATA = Path(__file__).parent / "data"
USER = [{"role": "user", "content": "Hi"}]
TEMPLATES = sorted(path.stem for path in (DATA / "templates").glob("*.jinja"))


def test_templates_render_as_transformers_renders_them(nano_model: pg.Model) -> None:
    cases = json.loads((DATA / "chat_phi3_nano.json").read_text("utf-8"))
    assert len(cases) >= 4
    for case in cases:
        prompt = nano_model.chat_prompt(
            case["messages"], add_generation_prompt=case["add_generation_prompt"]
        )
        assert prompt == case["text"]


def template_of(name: str) -> str:
    return (DATA / "templates" / f"{name}.jinja").read_text("utf-8")


def rendered(template: str, chat: dict[str, Any], special_tokens: dict[str, str]) -> str | None:
    """The chat's text; None where it is refused."""
    settings = ("tools", "documents", "variables", "add_generation_prompt")
    given = {name: chat[name] for name in (*settings, "continue_final_message") if name in chat}
    try:
        return pg.render_chat(template, chat["messages"], special_tokens=special_tokens, **given)
    except (pg.InputError, pg.FormatError):
        return None


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_familys_templates(name: str) -> None:
    conversations = json.loads((DATA / "chat_conversations.json").read_text("utf-8"))
    truth = json.loads((DATA / f"chat_{name}.json").read_text("utf-8"))
    assert len(conversations) >= 40
    for chat, text in zip(conversations, truth["texts"], strict=True):
        assert rendered(template_of(name), chat, truth["special_tokens"]) == text, chat


def test_what_templates_say_means_what_it_means_to_transformers() -> None:
    (context,), *expressions = json.loads((DATA / "chat_expressions.json").read_text("utf-8"))
    special_tokens = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>"}
    assert len(expressions) >= 60
    for template, text in expressions:
        assert rendered(template, context, special_tokens) == text, template


# The formats of the model cards, spelt out, so that the templates of the tests are what they say.
PHI3 = "<|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nV<|end|>\n"
PHI4 = (
    "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>U<|im_end|>"
    "<|im_start|>assistant<|im_sep|>A<|im_end|><|im_start|>user<|im_sep|>V<|im_end|>"
)
PHI4_MINI = "<|system|>S<|end|><|user|>U<|end|><|assistant|>A<|end|><|user|>V<|end|>"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("phi-3-mini", PHI3 + "<|assistant|>\n"),
        ("phi-3.5-mini", PHI3 + "<|assistant|>\n"),
        ("phi-3.5-moe", PHI3 + "<|assistant|>\n"),
        ("phi-3.5-vision", PHI3 + "<|assistant|>\n"),
        ("phi-3-medium", PHI3.removeprefix("<|system|>\nS<|end|>\n") + "<|assistant|>\n"),
        ("phi-4", PHI4 + "<|im_start|>assistant<|im_sep|>"),
        ("phi-4-first", PHI4 + "<|im_start|>assistant<|im_sep|>"),
        ("phi-4-mini", PHI4_MINI + "<|assistant|>"),
    ],
)
def test_formats_of_the_model_cards(name: str, text: str) -> None:
    turns = [("system", "S"), ("user", "U"), ("assistant", "A"), ("user", "V")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert pg.render_chat(template_of(name), messages) == text


TOOL = {"type": "function", "function": {"name": "now", "parameters": {"zone": "é"}}}
SYSTEM = {"role": "system", "content": "S"}


def placed(name: str, messages: list[dict[str, Any]], tools: Any) -> str:
    messages, tools = tools_in_place(template_of(name), messages, tools)  # type: ignore[assignment]
    return pg.render_chat(template_of(name), messages, tools=tools)


def test_tools_find_their_place_in_the_system_message() -> None:
    listed = '[{"name": "now", "parameters": {"zone": "é"}}]'
    text = placed("phi-4-mini", [SYSTEM, *USER], [TOOL])
    assert text == f"<|system|>S<|tool|>{listed}<|/tool|><|end|><|user|>Hi<|end|><|assistant|>"
    told, rest = placed("phi-4-mini", USER, [TOOL["function"]]).split("<|tool|>")
    assert told.startswith("<|system|>") and len(told) > len("<|system|>")
    assert rest == f"{listed}<|/tool|><|end|><|user|>Hi<|end|><|assistant|>"
    assert placed("phi-4-mini", USER, []) == "<|user|>Hi<|end|><|assistant|>"
    assert '"name": "now"' in placed("phi-4-mini-functions", USER, [TOOL])
    with pytest.raises(pg.UnsupportedError, match="no place for tools"):
        placed("phi-3.5-mini", USER, [TOOL])


def test_calls_of_earlier_turns_are_written_as_the_model_writes_them() -> None:
    call = ToolCall("now", {"zone": "é"}, "c1")
    written = '<|tool_call|>[{"name": "now", "arguments": {"zone": "é"}}]<|/tool_call|>'
    for calls in ([call], [call.as_message()], [{"name": "now", "arguments": '{"zone": "é"}'}]):
        answer = {"role": "assistant", "content": None, "tool_calls": calls}
        text = placed("phi-4-mini", [*USER, answer], None)
        assert text == f"<|user|>Hi<|end|><|assistant|>{written}<|end|><|assistant|>"
    # A template that looks at tool_calls, or knows no tools at all, sees the message as it is.
    assert 'functools[{"name": "now"' in placed("phi-4-mini-functions", [*USER, answer], None)
    assert "now" not in placed("phi-3.5-mini", [*USER, {**answer, "content": "A"}], None)
    with pytest.raises(pg.InputError, match="tool_calls"):
        placed("phi-4-mini", [*USER, {**answer, "tool_calls": [{"id": "c1"}]}], None)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), 10**5000, {(1, 2): 3}],
    ids=["nan", "inf", "digits", "key"],
)
def test_tools_and_calls_that_are_no_json(value: Any) -> None:
    with pytest.raises(pg.InputError, match="chat: "):
        placed("phi-4-mini", USER, [{"name": "now", "parameters": value}])
    call = {"function": {"name": "now", "arguments": {"zone": value}}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    with pytest.raises(pg.InputError, match="chat: "):
        placed("phi-4-mini", [*USER, answer], None)


def test_a_model_gets_its_tools(nano_model: pg.Model) -> None:
    with pytest.raises(pg.UnsupportedError, match="no place for tools"):
        nano_model.chat_prompt(USER, tools=[TOOL])
    answer = {"role": "assistant", "content": "I th"}
    prompt = nano_model.chat_prompt(
        [*USER, answer], add_generation_prompt=False, continue_final_message=True
    )
    assert prompt == "<|user|>\nHi<|end|>\n<|assistant|>\nI th"


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
    "{{ dict.__class__ }}{{ joiner.__init__ }}",
    "{{ cycler('a').__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{% generation %}{{ ''.__class__ }}{% endgeneration %}",
    "{{ range(9)|map('attr', '__class__')|list|string|replace('Undefined', '') }}",
    "{{ environment.weighed.__func__ }}",
    "{{ strftime_now('%999999999Y') }}",
    "{{ [1]|tojson(indent=10**9) }}",
    "{{ [1]|tojson(separators=('x' * 999, '')) }}",
    "{{ 'x'|indent('y' * 4000000, true) }}{{ 'x\\nx'|indent(4000000) }}",
    "{{ 'a b'|wordwrap(1, wrapstring='x' * 4000000) }}",
    "{{ 'x'.ljust(10**10) }}",
    "{{ '1'.zfill(10**10) }}",
    "{{ '\t'.expandtabs(10**10) }}",
    "{{ 'x'.encode().center(10**10) }}",
    "{{ (5).to_bytes(10**10, 'big') }}",
    "{{ 'xx'.translate({120: 'y' * 4000000}) }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 10**10) }}",
    "{{ ('{}' * 99999).format('x' * 4000000) }}",
    "{{ 'x' * 99999 |replace('x', 'y' * 99999) }}",
    "{{ ('x' * 99999)|replace('x', 'y' * 99999) }}",
    "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
    "{{ ('x' * 4000).join('y' * 4000000) }}",
    "{{ ['x' * 100000] * 99999 }}",
    "{{ (['x' * 100000] * 99999)|join }}",
    "{{ [1]|batch(10**9, 0)|list }}{{ [1]|slice(10**9)|list }}",
    "{{ 5|round(-10**9) }}",
    "{{ [[1]]|sum(start=[]) }}",
    "{% for a in range(99999) %}{% set x = ('x' * 4000000)|upper %}{% endfor %}",
    "{% for a in range(99999) %}{% set x = ('x' * 4000000).upper() %}{% endfor %}",
]
# What is slow or large in one step of Python's, which no trace interrupts, or many times in a line.
HOSTILE += [
    "{% set s = 'x' * 4000000 %}{% set t = (" + "s[1:]," * 9999 + ") %}",
    "{% set s = 'x' * 4000000 %}{{ ''|safe }}" + "{% set t = (''|safe).escape(s) %}" * 999,
    "{% set s = 'ab ' * 1300000 %}" + "".join(f"{{% set a{i} = s.split() %}}" for i in range(999)),
    "".join(f"{{% set a{i} = range(99999)|list %}}" for i in range(1500)),
    "{{ [range(99999)|list] * 99999 == [range(99999)|list] * 99999 }}",
    "{{ ([range(99999)|list] * 99999)|sort }}",
    "{% set s = 'x' * 3900000 %}{% set t = 'x' * 3899999 ~ 'x' %}{{ ("
    + "[s] == [t]," * 4500
    + ") }}",
    "{% set s = 'x' * 3900000 %}{% set t = 'x' * 3899999 ~ 'y' %}{{ ("
    + "s is eq t," * 5500
    + ") }}",
    "{% set l = range(0, 99999 * (2**61 - 1), 2**61 - 1)|batch(2)|list %}{{ dict(l) }}",
    "{{ {}.fromkeys(range(0, 99999 * (2**61 - 1), 2**61 - 1)) }}",
    "{{ ('f' * 4000000)|int(0, 16) // ('f' * 2000000)|int(0, 16) }}",
    "{% set a = ('f' * 4000000)|int(0, 16) %}{% set t = (" + "a - 1," * 9999 + ") %}",
    "{{ ('\u0391' * 4000000).encode('ascii', 'namereplace') }}",
    "{% set n = namespace(x=range(99999)|list) %}{% for _ in range(250) %}"
    "{% set n.x = [n.x] %}{% endfor %}{{ n.x|tojson(indent=64) }}",
    "{% set n = namespace(x=1) %}{% for _ in range(99) %}{% set n.x = namespace(a=n.x, b=n.x) %}"
    "{% endfor %}{{ raise_exception(n.x) }}",
    "".join(f"{{%set a{i}=1%}}" for i in range(2000)) + "{%include x%}" * 2000,
    "".join(f"{{%set a{i}=1%}}" for i in range(2000))
    + "".join(f"{{%block b{i} scoped%}}{{%endblock%}}" for i in range(900)),
]
# What Python's own compiler refuses, and numbers that it does not know.
HOSTILE += [
    "{% for a in [1] %}" * 25 + "{% endfor %}" * 25,
    "{% if 1 %}" * 150 + "{% endif %}" * 150,
    "{% break %}",
    "{{ 1e999 }}",
]
# What doubles with each round: 99 rounds of any of them would take all memory there is.
DOUBLING = [
    "{% set n.x = n.x + n.x %}",
    "{% set n.x = n.x ~ n.x %}",
    "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}",
    "{% set n.x = twice(n.x) %}",
    "{% set n.x = n.x|replace('x', 'xx') %}",
    "{% set n.x = n.x.replace('x', 'xx') %}",
    "{% set n.x = [n.x, n.x]|join %}",
    "{% set n.x = ''.join([n.x, n.x]) %}",
    "{% set n.x = '{0}{0}'.format(n.x) %}",
    "{% set n.x = [n.x, n.x] %}",
    "{% set n.x = (n.x, n.x) %}",
    "{% set n.x = {'a': n.x, 'b': n.x} %}",
    "{% set n.x = dict(a=n.x, b=n.x) %}",
    "{% set n.x = namespace(a=n.x, b=n.x) %}",
    "{% set n.y = (n.y + n.y)|batch(2)|list %}",
    "{% set n.x = {1: n.x, 2: n.x}.values() %}",
    "{% set n.x = {1: n.x, 2: n.x}.items() %}",
    "{% set n.x = {1: n.x, 2: n.x}.items().mapping %}",
    "{% set n.x = cycler(n.x, n.x).items %}",
    "{{ keep(n.x, n.x) }}",
    "{{ keep(a=n.x, b=n.x) }}",
    "{% set n.i = n.i * n.i %}",
]
HOSTILE += [
    "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}"
    "{% set n = namespace(x='x', y=[1], i=9) %}"
    "{% macro keep() %}{% set n.x = kwargs or varargs %}{{ varargs and '' }}{% endmacro %}"
    "{% for _ in range(99) %}" + step + "{% endfor %}" + end
    for step in DOUBLING
    for end in ("{{ n.x }}{{ n.y }}{{ n.i }}", "{{ {n.x: 1} }}")
]


@pytest.mark.parametrize("template", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_templates(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_limits, "MOST_SECONDS", 0.3)
    before = sys.gettrace()
    start = time.thread_time()
    try:
        text = pg.render_chat(template, USER)
    except pg.FormatError as error:
        assert str(error).startswith("chat: ")
    else:
        # What the sandbox turns into nothing is harmless too.
        assert "class" not in text and "root:" not in text
    assert time.thread_time() - start < 3
    assert sys.gettrace() is before


def test_long_templates_are_refused_before_they_are_compiled() -> None:
    with pytest.raises(pg.FormatError, match="longer than"):
        pg.render_chat("{{ x }}" * 100_000, USER)


@pytest.mark.slow
def test_no_step_takes_much_memory() -> None:
    """In one process, whose peak tells."""
    code = (
        "import resource, sys, json, phiggml as pg\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "for template in json.load(sys.stdin):\n"
        "    try: pg.render_chat(template, [{'role': 'user', 'content': 'Hi'}])\n"
        "    except (pg.FormatError, pg.InputError): pass\n"
        "print((peak() - before) >> 10)\n"
    )
    greedy = [t for t in HOSTILE if re.search(r"s\[1:\]|split|escape|range\(99999\)\|l|a - 1", t)]
    assert len(greedy) >= 8
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(greedy),
        capture_output=True,
        check=True,
        text=True,
        timeout=100,
    )
    # Megabytes; without the limits each of them takes thousands.
    assert int(done.stdout) < 900


def test_the_deadline_holds_when_the_trace_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is when what the trace raised was dropped, in the end of an iterator."""
    monkeypatch.setattr(sys, "settrace", lambda trace: None)
    loops = "{% for a in range(99999) %}{% for b in range(9999) %}{% set x = a == b %}"
    start = time.monotonic()
    with pytest.raises(pg.FormatError, match="2 seconds"):
        pg.render_chat(loops + "{% endfor %}{% endfor %}", USER)
    assert time.monotonic() - start < 5


def test_refusals_are_cut() -> None:
    with pytest.raises(pg.InputError, match="refuses") as error:
        pg.render_chat("{{ raise_exception('x' * 4000000) }}", USER)
    assert len(str(error.value)) < 2000
    with pytest.raises(pg.FormatError, match="fails") as error:
        pg.render_chat("{{ [1].index('x' * 4000000) }}", USER)
    assert len(str(error.value)) < 1000


def test_the_trace_of_a_debugger_survives_the_deadline() -> None:
    def trace(*_: Any) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(LimitError), Limits() as limits:
            limits._deadline = 0
            json.dumps([])
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)


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
        [{"role": "user", "content": None}],
        [{"role": "user", "content": None, "tool_calls": []}],
        [{"role": "user", "content": ["Hi"]}],
        [{"role": 5, "content": "Hi"}],
        [{"role": "user", "content": "Hi", "image": object()}],
        [{"role": "user", "content": "Hi", (1, 2): 3}],
        [{"role": "assistant", "content": "Hi", "tool_calls": 5}],
        [{"role": "assistant", "content": "Hi", "tool_calls": "f"}],
        [{"role": "assistant", "content": "Hi", "tool_calls": [5]}],
        [{"role": "assistant", "content": None, "tool_calls": [ToolCall("f", 5)]}],  # type: ignore[arg-type]
    ],
)
def test_wrong_messages(messages: Any) -> None:
    with pytest.raises(pg.InputError, match="chat"):
        pg.render_chat("x", messages)


@pytest.mark.parametrize(
    "settings",
    [
        {"tools": "x"},
        {"tools": {"name": "x"}},
        {"tools": [print]},
        {"documents": [1]},
        {"variables": []},
        {"variables": {"messages": 1}},
        {"variables": {1: 1}},
        {"variables": {"x": object()}},
        {"continue_final_message": True},
        {"continue_final_message": "thinking", "add_generation_prompt": False},
    ],
)
def test_wrong_settings(settings: Any) -> None:
    with pytest.raises(pg.InputError, match="chat"):
        pg.render_chat("{{ messages[0].content }}", USER, **settings)


def test_values_are_copied_in_pythons_own_types() -> None:
    class Text(str):
        def secret(self) -> str:
            return "told"

    nested: list[Any] = []
    nested.append(nested)
    with pytest.raises(pg.InputError, match="too deeply"):
        pg.render_chat("x", USER, variables={"x": nested})
    text = pg.render_chat(
        "{{ x.secret is defined }}{{ x }}{{ n + 1 }}{{ f }}{{ t }}",
        USER,
        variables={"x": Text("a"), "n": np.int64(2), "f": np.float32(0.5), "t": (1, True)},
    )
    assert text == "Falsea30.5(1, True)"
    turns = [{**USER[0], "extra": [1]}]
    pg.render_chat("{% set messages = 1 %}", turns)
    assert turns == [{**USER[0], "extra": [1]}]


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
