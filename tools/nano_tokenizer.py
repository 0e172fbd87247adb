"""The tokenizer of phi3-nano: sentencepiece BPE with byte fallback and Phi-3's chat markup."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import sentencepiece as spm  # type: ignore[import-untyped]

PRINTABLE_ASCII = "".join(map(chr, range(33, 127)))

# The markers of Phi-3-mini-4k-instruct in the order of their ids, which follow the pieces.
MARKERS = (
    "<|endoftext|>",
    "<|assistant|>",
    "<|placeholder1|>",
    "<|placeholder2|>",
    "<|placeholder3|>",
    "<|placeholder4|>",
    "<|system|>",
    "<|end|>",
    "<|placeholder5|>",
    "<|placeholder6|>",
    "<|user|>",
)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('unknown role: ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"
)


def train_pieces(texts: Iterable[str], *, size: int, required: str = "") -> bytes:
    """Train a sentencepiece BPE model in the manner of Phi-3's; returns its serialized form.

    The characters of ``required`` become pieces even where ``texts`` lack them.
    """
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        character_coverage=1.0,
        required_chars=required,
        max_sentence_length=1 << 16,
        num_threads=2,
        minloglevel=2,
    )
    return model.getvalue()


class ChatTokenizer:
    """Token ids of text and of chats, as llama.cpp makes them for a model named phi3."""

    def __init__(self, model: bytes) -> None:
        self.model = model
        self.pieces = spm.SentencePieceProcessor(model_proto=model)
        self.size: int = self.pieces.get_piece_size()
        self.markers = {marker: self.size + i for i, marker in enumerate(MARKERS)}

    @property
    def padded_size(self) -> int:
        """Rows of the embedding matrix: pieces and markers, up to a multiple of 64."""
        return -(-(self.size + len(MARKERS)) // 64) * 64

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.pieces.encode(text)
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self.pieces.decode([i for i in ids if i < self.size])
        return text

    def turn(self, role: str, text: str) -> list[int]:
        """One message. The newline after a marker is stripped, as Phi-3's markers ask for it."""
        return [self.markers[f"<|{role}|>"], *self.encode(text), self.markers["<|end|>"]]

    def prompt(self, question: str) -> list[int]:
        return [*self.turn("user", question), self.markers["<|assistant|>"]]


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _added_token(content: str, *, rstrip: bool, special: bool) -> dict[str, object]:
    return {
        "content": content,
        "lstrip": False,
        "normalized": False,
        "rstrip": rstrip,
        "single_word": False,
        "special": special,
    }


def write_tokenizer(folder: Path, model: bytes, *, max_length: int) -> None:
    """Write the five files of a Phi-3 tokenizer in the released Hugging Face layout."""
    tokenizer = ChatTokenizer(model)
    (folder / "tokenizer.model").write_bytes(model)
    _write(folder / "added_tokens.json", dict(sorted(tokenizer.markers.items())))
    decoder = {
        "0": _added_token("<unk>", rstrip=False, special=True),
        "1": _added_token("<s>", rstrip=False, special=True),
        "2": _added_token("</s>", rstrip=True, special=False),
    }
    for marker, i in tokenizer.markers.items():
        decoder[str(i)] = _added_token(marker, rstrip=marker != "<|endoftext|>", special=True)
    _write(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_eos_token": False,
            "added_tokens_decoder": decoder,
            "bos_token": "<s>",
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|endoftext|>",
            # Unlike the release: a text after a marker begins with a space, as llama.cpp has it.
            "legacy": True,
            "model_max_length": max_length,
            "pad_token": "<|endoftext|>",
            "padding_side": "left",
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": "<unk>",
            "use_default_system_prompt": False,
        },
    )
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    _write(
        folder / "special_tokens_map.json",
        {
            "bos_token": {"content": "<s>", **plain},
            "eos_token": {"content": "<|endoftext|>", **plain},
            "pad_token": {"content": "<|endoftext|>", **plain},
            "unk_token": {"content": "<unk>", **plain},
        },
    )


def write_generation_config(folder: Path, model: bytes) -> None:
    markers = ChatTokenizer(model).markers
    _write(
        folder / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": [markers[m] for m in ("<|endoftext|>", "<|assistant|>", "<|end|>")],
            "pad_token_id": markers["<|endoftext|>"],
        },
    )
