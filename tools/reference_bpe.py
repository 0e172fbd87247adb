"""Byte-level BPE tokenizers of the tiny checkpoints, in the released files of Phi-2 and Phi-4."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nano_corpus import stories
from reference_tokenizers import train_bpe

ENDOFTEXT = "<|endoftext|>"

PHI4_CHAT = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
PHI4_MINI_CHAT = (
    "{% for message in messages %}"
    "{% set tools = message['tools'] if message['role'] == 'system' else none %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if tools %}{{ '<|tool|>' + tools + '<|/tool|>' }}{% endif %}"
    "{{ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)


@dataclass(frozen=True)
class BPEKind:
    """What distinguishes the BPE tokenizer of one family from the others'."""

    split: str
    tokenizer_class: str
    end: str = ENDOFTEXT
    unknown: str = ENDOFTEXT
    pad: str | None = None
    stops: tuple[str, ...] = ()
    chat_template: str | None = None
    added_tokens_json: bool = True


CODEGEN = BPEKind("gpt-2", "CodeGenTokenizer")
PHI4 = BPEKind(
    "cl100k",
    "GPT2Tokenizer",
    end="<|im_end|>",
    unknown="\ufffd",
    pad="<|dummy_0|>",
    stops=(ENDOFTEXT, "<|im_end|>"),
    chat_template=PHI4_CHAT,
    added_tokens_json=False,
)
PHI4_MINI = BPEKind(
    "o200k",
    "GPT2Tokenizer",
    pad=ENDOFTEXT,
    stops=("<|end|>", ENDOFTEXT),
    chat_template=PHI4_MINI_CHAT,
)


def _write(path: Path, value: object) -> None:
    """Write JSON in one line: half the size of the releases' indented files."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    path.write_text(text + "\n", encoding="utf-8")


class BPEFiles:
    """The files of one trained tokenizer; ``tokens`` holds its tokens by id."""

    def __init__(self, kind: BPEKind, *, seed: int, size: int, max_length: int) -> None:
        self.kind = kind
        self.max_length = max_length
        self.document: dict[str, Any] = train_bpe(kind.split, list(stories(3000, seed)), size)
        self.added: list[dict[str, Any]] = self.document["added_tokens"]
        self.ids: dict[str, int] = {token["content"]: token["id"] for token in self.added}
        self.vocabulary: dict[str, int] = self.document["model"]["vocab"]
        if kind.split == "gpt-2":  # its end of text is a learned token as well
            self.vocabulary[ENDOFTEXT] = self.ids[ENDOFTEXT]
        everything = self.vocabulary | self.ids
        self.tokens = sorted(everything, key=everything.__getitem__)

    def write(self, folder: Path) -> None:
        """Write the tokenizer's files and generation_config.json."""
        kind = self.kind
        _write(folder / "tokenizer.json", self.document)
        _write(folder / "vocab.json", self.vocabulary)
        pairs = self.document["model"]["merges"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
        text = "\n".join(["#version: 0.2", *merges]) + "\n"
        (folder / "merges.txt").write_text(text, encoding="utf-8")
        if kind.added_tokens_json:
            outside = {t: i for t, i in self.ids.items() if t not in self.vocabulary}
            _write(folder / "added_tokens.json", outside)
        _write(folder / "tokenizer_config.json", self._tokenizer_config())
        special = {"bos_token": ENDOFTEXT, "eos_token": kind.end, "unk_token": kind.unknown}
        if kind.pad:
            special["pad_token"] = kind.pad
        _write(folder / "special_tokens_map.json", special)
        _write(folder / "generation_config.json", self._generation_config())

    def _tokenizer_config(self) -> Mapping[str, object]:
        kind = self.kind
        decoder = {
            str(token["id"]): {name: token[name] for name in sorted(token) if name != "id"}
            for token in self.added
        }
        config: dict[str, object] = {
            "add_prefix_space": False,
            "added_tokens_decoder": decoder,
            "bos_token": ENDOFTEXT,
            "clean_up_tokenization_spaces": kind.split == "gpt-2",
            "eos_token": kind.end,
            "model_max_length": self.max_length,
            "tokenizer_class": kind.tokenizer_class,
            "unk_token": kind.unknown,
        }
        if kind.pad:
            config |= {"pad_token": kind.pad, "padding_side": "left"}
        if kind.chat_template:
            config["chat_template"] = kind.chat_template
        if kind.split == "gpt-2":
            config["errors"] = "replace"
        if kind.split == "o200k":
            config |= {"add_bos_token": False, "add_eos_token": False}
        return config

    def _generation_config(self) -> Mapping[str, object]:
        kind = self.kind
        stops: object = [self.ids[stop] for stop in kind.stops] or self.ids[ENDOFTEXT]
        config: dict[str, object] = {
            "_from_model_config": True,
            "bos_token_id": self.ids[ENDOFTEXT],
            "eos_token_id": stops,
        }
        if kind.pad:
            config["pad_token_id"] = self.ids[kind.pad]
        return config
