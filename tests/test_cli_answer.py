"""What run and chat are told of an answer: grammars, adapters, guesses, settings."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phiggml as pg
from command_line import GREEDY, Out, complaint, phiggml

QUESTION = "What is GGUF?"


def answer(out: Out, model: Path, *options: str | Path) -> dict[str, Any]:
    line = ("run", model, "-p", QUESTION, "-n", "12", "--json", *GREEDY, *options)
    assert phiggml(*line) == 0
    document: dict[str, Any] = json.loads(out.readouterr().out)
    return document


def test_what_an_answer_may_be(nano_q4: Path, tmp_path: Path, capsys: Out) -> None:
    grammar, schema = tmp_path / "=.gbnf", tmp_path / "schema.json"
    grammar.write_text('root ::= "yes" | "no"', "utf-8")
    schema.write_text('{"enum": ["a", "é"]}', "utf-8")
    assert answer(capsys, nano_q4, "--grammar", grammar)["text"] in ("yes", "no")
    assert answer(capsys, nano_q4, "--json-schema", schema)["text"] in ('"a"', '"é"')
    assert answer(capsys, nano_q4, "--json-schema", ' {"const": 5}')["text"] == "5"
    assert answer(capsys, nano_q4, "--stop", " the")["text"] == "GGUF is"


@pytest.mark.parametrize(
    ("option", "content", "code", "sentence"),
    [
        ("--grammar", b"root ::= a", 3, "grammar: rule 'a'"),
        ("--grammar", b"\xff", 3, "no text in UTF-8"),
        ("--json-schema", b"{", 3, "json_schema: #: it is no JSON"),
        ("--json-schema", b'{"pattern": "(?=a)", "type": "string"}', 5, "#/pattern"),
        ("--tools", b"{}", 3, "must be a list"),
        ("--control-vector", b"GGUF", 4, "GGUF"),
        ("--lora", None, 8, "No such file"),
        ("--draft", None, 8, "No such file"),
        ("--grammar", None, 8, "No such file"),
    ],
)
def test_wrong_files_are_found_before_the_model_is_loaded(
    option: str,
    content: bytes | None,
    code: int,
    sentence: str,
    *,
    tmp_path: Path,
    capsys: Out,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pg, "Model", None)
    file = tmp_path / "given"
    if content is not None:
        file.write_bytes(content)
    for verb in (("run", "-p", "Hi"), ("chat",)):
        assert phiggml(*verb, "model.gguf", option, file) == code
        said = complaint(capsys)
        assert str(file) in said
        assert sentence in said


def test_wrong_options(capsys: Out) -> None:
    for options, sentence in (
        (("--top-k", "1.5"), "no whole number"),
        (("--logit-bias", "5"), "no list of biases"),
        (("--dry-sequence-breakers", "a"), "no JSON list"),
        (("--draft", "a", "--prompt-lookup"), "not allowed with"),
        (("--grammar", "a", "--json-schema", "{}"), "not allowed with"),
    ):
        with pytest.raises(SystemExit, match="2"):
            phiggml("run", "model.gguf", "-p", "Hi", *options)
        assert sentence in complaint(capsys)
    for options, sentence in (
        (("--json-schema", "{"), "no JSON"),
        (("--logprobs", "2"), "Add --json"),
        (("-n", "0"), "max_tokens is 0"),
        (("--seed", "-1"), "seed is -1"),
    ):
        assert phiggml("run", "model.gguf", "-p", "Hi", *options) == 3
        assert sentence in complaint(capsys)


def test_guesses_change_nothing(nano_q4: Path, capsys: Out) -> None:
    plain = answer(capsys, nano_q4)["tokens"]
    for options in (("--prompt-lookup",), ("--draft", nano_q4)):
        assert answer(capsys, nano_q4, *options)["tokens"] == plain
    line = ("run", nano_q4, "-p", QUESTION, "-n", "12", *GREEDY)
    assert phiggml(*line, "--draft", nano_q4) == 0
    found = re.search(r"(\d+) of (\d+) guesses were right$", capsys.readouterr().err.rstrip())
    assert found is not None and int(found[1]) == int(found[2]) > 0
    assert phiggml(*line) == 0
    assert "guesses" not in capsys.readouterr().err


def test_adapters_and_their_scales(nano_f16: Path, tmp_path: Path, capsys: Out) -> None:
    lora, vector = tmp_path / "lora=.gguf", tmp_path / "vector.gguf"
    with pg.GGUFWriter(lora) as writer:
        writer.metadata["general.architecture"] = "phi3"
        writer.metadata["general.type"] = "adapter"
        writer.metadata["adapter.type"] = "lora"
        writer.metadata["adapter.lora.alpha"] = np.float32(2)
        random = np.random.default_rng(1)
        writer.add_tensor("output.weight.lora_a", random.normal(size=(2, 256)).astype("f4"))
        writer.add_tensor("output.weight.lora_b", random.normal(size=(2048, 2)).astype("f4"))
    with pg.GGUFWriter(vector) as writer:
        writer.metadata["general.architecture"] = "controlvector"
        writer.add_tensor("direction.1", 100 * random.normal(size=256).astype("f4"))
    plain = answer(capsys, nano_f16)["tokens"]
    for option, file in (("--lora", lora), ("--control-vector", vector)):
        assert answer(capsys, nano_f16, option, f"{file}=0")["tokens"] == plain
        assert answer(capsys, nano_f16, option, file)["tokens"] != plain
        assert answer(capsys, nano_f16, option, file, option, f"{file}=-1")["tokens"] == plain


def test_log_probabilities(nano_q4: Path, capsys: Out) -> None:
    document = answer(capsys, nano_q4, "--logprobs", "2")
    with pg.Session(nano_q4, threads=1) as session:
        score = session.score(
            np.concatenate(
                [
                    session.model.tokenize(document["prompt"], parse_special=True),
                    np.array(document["tokens"], np.int32),
                ]
            )
        )
    found = document["logprobs"]
    assert [entry["token"] for entry in found] == document["tokens"]
    for entry, expected in zip(found, score.logprobs[-len(found) :], strict=True):
        assert math.isclose(entry["logprob"], expected, abs_tol=1e-3)
        assert entry["top"][0] == {key: entry[key] for key in ("token", "text", "logprob")}
        assert len(entry["top"]) == 2
    assert "".join(entry["text"] for entry in found).strip() == document["text"]


def test_each_setting_reaches_the_session(
    nano_q4: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    begun = pg.Session.__init__

    def watched(session: pg.Session, model: pg.Model, **settings: Any) -> None:
        made.append(settings)
        begun(session, model, **settings)

    monkeypatch.setattr(pg.Session, "__init__", watched)
    cache = ("--type-k", "Q8_0", "--type-v", "BF16", "--flash-attn", "on", "--no-offload-kv")
    context = ("--n-ctx", "32", "--n-batch", "16", "--no-swa-full", "--overflow", "shift")
    document = answer(capsys, nano_q4, *cache, *context, "-n", "40", "--logit-bias", "0=-inf,2=-99")
    assert document["timings"]["tokens"] + document["timings"]["prompt_tokens"] > 32
    assert made == [
        {
            "n_ctx": 32,
            "n_batch": 16,
            "n_seq_max": 1,
            "type_k": "Q8_0",
            "type_v": "BF16",
            "flash_attn": True,
            "offload_kv": False,
            "swa_full": False,
            "overflow": "shift",
            "threads": 1,
        }
    ]


def test_each_field_of_sampling_is_an_option(
    nano_q4: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[pg.Sampling] = []
    streamed = pg.Session.stream_chat

    def watched(session: pg.Session, messages: Any, **settings: Any) -> Any:
        asked.append(settings["sampling"])
        return streamed(session, messages, **settings)

    monkeypatch.setattr(pg.Session, "stream_chat", watched)
    values: dict[str, tuple[str, Any]] = {
        "temperature": ("0.5", 0.5), "top_k": ("7", 7), "top_p": ("0.9", 0.9),
        "min_p": ("0.1", 0.1), "typical_p": ("0.8", 0.8), "repeat_penalty": ("1.1", 1.1),
        "frequency_penalty": ("0.1", 0.1), "presence_penalty": ("0.2", 0.2),
        "penalty_last_n": ("9", 9), "seed": ("3", 3), "dynatemp_range": ("0.1", 0.1),
        "dynatemp_exponent": ("2", 2.0), "top_n_sigma": ("3", 3.0),
        "xtc_probability": ("0.1", 0.1), "xtc_threshold": ("0.2", 0.2),
        "dry_multiplier": ("0.5", 0.5), "dry_base": ("1.5", 1.5), "dry_allowed_length": ("3", 3),
        "dry_penalty_last_n": ("8", 8), "dry_sequence_breakers": ('["\\n"]', ("\n",)),
        "mirostat": ("2", 2), "mirostat_tau": ("4", 4.0), "mirostat_eta": ("0.2", 0.2),
        "logit_bias": ("5=-inf,6=1", ((5, -math.inf), (6, 1.0))),
    }  # fmt: skip
    options = [
        part for name, (text, _) in values.items() for part in (f"--{name.replace('_', '-')}", text)
    ]
    assert phiggml("run", nano_q4, "-p", "Hi", "-n", "1", "--threads", "1", *options) == 0
    expected = pg.Sampling(**{name: value for name, (_, value) in values.items()})
    assert asked == [expected]
    typed = "".join(f"/set {name} {text}\n" for name, (text, _) in values.items())
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{typed}/set max-tokens 1\nHi\n/set\n"))
    assert phiggml("chat", nano_q4, "--threads", "1") == 0
    assert asked[-1] == expected
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().err.splitlines()[-25:])
    assert set(shown) == {*values, "max_tokens"}
    assert shown["logit_bias"] == "5=-inf,6=1"
    assert shown["dry_sequence_breakers"] == '["\\n"]'
