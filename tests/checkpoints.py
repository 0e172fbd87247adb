"""Tiny Phi-3 checkpoints from a seed, written with struct and json alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HIDDEN, HEADS, KV_HEADS, LAYERS, FEED_FORWARD, ROWS = 32, 4, 2, 2, 48, 288
HEAD_SIZE = HIDDEN // HEADS
FACTORS = tuple(1.0 + 0.5 * i for i in range(HEAD_SIZE // 2))

UNKNOWN, CONTROL, NORMAL, BYTE = 2, 3, 1, 6
PIECES: tuple[tuple[str, float, int], ...] = (
    ("<unk>", 0.0, UNKNOWN),
    ("<s>", 0.0, CONTROL),
    ("</s>", 0.0, CONTROL),
    *((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)),
    *((text, -float(rank), NORMAL) for rank, text in enumerate(("ab", "▁a", "▁", "a", "b"))),
)
MARKERS = (
    "<|endoftext|>",
    "<|assistant|>",
    "<|placeholder1|>",
    "<|system|>",
    "<|end|>",
    "<|user|>",
)
MARKER_IDS = {marker: len(PIECES) + i for i, marker in enumerate(MARKERS)}

Stored = tuple[str, tuple[int, ...], bytes]


def varint(value: int) -> bytes:
    out = bytearray()
    value &= 2**64 - 1
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def proto_bytes(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def proto_int(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def piece_message(text: str | bytes, score: float, kind: int) -> bytes:
    encoded = text.encode() if isinstance(text, str) else text
    body = proto_bytes(1, encoded) + b"\x15" + struct.pack("<f", score)
    return proto_bytes(1, body + (proto_int(3, kind) if kind != NORMAL else b""))


def sentencepiece_model(
    pieces: Iterable[tuple[str | bytes, float, int]] = PIECES,
    *,
    algorithm: int = 2,
    dummy_prefix: bool = True,
) -> bytes:
    """The bytes of a ModelProto: pieces, trainer_spec, normalizer_spec."""
    trainer = proto_int(3, algorithm) + proto_int(35, 1) + proto_int(43, -1)
    normalizer = proto_bytes(1, b"identity") + proto_int(3, dummy_prefix)
    body = b"".join(piece_message(*piece) for piece in pieces)
    return body + proto_bytes(2, trainer) + proto_bytes(3, normalizer)


def safetensors_bytes(tensors: Mapping[str, Stored], metadata: Any = None) -> bytes:
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        data += raw
    return with_header(json.dumps(header).encode(), data)


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def shapes(
    *, tied: bool = False, rows: int = ROWS, feed_forward: int = FEED_FORWARD
) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        found |= {
            prefix + "input_layernorm.weight": (HIDDEN,),
            prefix + "self_attn.qkv_proj.weight": (HEAD_SIZE * (HEADS + 2 * KV_HEADS), HIDDEN),
            prefix + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            prefix + "post_attention_layernorm.weight": (HIDDEN,),
            prefix + "mlp.gate_up_proj.weight": (2 * feed_forward, HIDDEN),
            prefix + "mlp.down_proj.weight": (HIDDEN, feed_forward),
        }
    found["model.norm.weight"] = (HIDDEN,)
    if not tied:
        found["lm_head.weight"] = (rows, HIDDEN)
    return found


def stored_values(
    shape: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> tuple[Stored, npt.NDArray[np.float32]]:
    """Random values that ``dtype`` holds exactly: how they are stored, and what they are."""
    values = rng.standard_normal(shape).astype(np.float32)
    if dtype == "F32":
        return (dtype, shape, values.astype("<f4").tobytes()), values
    if dtype == "F16":
        half = values.astype("<f2")
        return (dtype, shape, half.tobytes()), half.astype(np.float32)
    bits = values.view(np.uint32) & 0xFFFF0000
    return (dtype, shape, (bits >> 16).astype("<u2").tobytes()), bits.view(np.float32)


def config(**changes: Any) -> dict[str, Any]:
    """config.json of the checkpoint; a change to ``...`` takes the field out."""
    fields: dict[str, Any] = {
        "architectures": ["Phi3ForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": MARKER_IDS["<|endoftext|>"],
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "max_position_embeddings": 4096,
        "model_type": "phi3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "original_max_position_embeddings": 4096,
        "pad_token_id": MARKER_IDS["<|endoftext|>"],
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": 2047,
        "tie_word_embeddings": False,
        "vocab_size": ROWS,
    } | changes
    return {name: value for name, value in fields.items() if value is not ...}


def added_token(content: str, *, rstrip: bool = True, special: bool = True) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "single_word": False}
    return {"content": content, "rstrip": rstrip, "special": special, **flags}


def tokenizer_config(**changes: Any) -> dict[str, Any]:
    decoder = {
        "0": added_token("<unk>", rstrip=False),
        "1": added_token("<s>", rstrip=False),
        "2": added_token("</s>", special=False),
    }
    for marker, token_id in MARKER_IDS.items():
        decoder[str(token_id)] = added_token(marker, rstrip=marker != "<|endoftext|>")
    fields: dict[str, Any] = {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": decoder,
        "bos_token": "<s>",
        "chat_template": "{{ messages[0]['content'] }}",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    } | changes
    return {name: value for name, value in fields.items() if value is not ...}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_weights(
    folder: Path, tensors: Mapping[str, Stored], *, shards: int = 1, index: bool = True
) -> None:
    """model.safetensors, or shards with or without an index."""
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        stored = {name: tensors[name] for name in part}
        (folder / file).write_bytes(safetensors_bytes(stored, {"format": "pt"}))
        weight_map |= dict.fromkeys(part, file)
    if shards > 1 and index:
        write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})


def write_tokenizer(folder: Path, **changes: Any) -> None:
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    write_json(folder / "added_tokens.json", MARKER_IDS)
    write_json(folder / "tokenizer_config.json", tokenizer_config(**changes))
    ends = [MARKER_IDS[m] for m in ("<|end|>", "<|assistant|>", "<|endoftext|>")]
    write_json(folder / "generation_config.json", {"eos_token_id": ends})


def write_checkpoint(
    folder: Path,
    *,
    dtype: str = "F32",
    shards: int = 1,
    index: bool = True,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, npt.NDArray[np.float32]]:
    """Write a whole checkpoint; returns what its tensors hold, by name in the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    fields = config(**(changes or {}))
    write_json(folder / "config.json", fields)
    tensors: dict[str, Stored] = {}
    values: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in shapes(tied=fields.get("tie_word_embeddings") is True).items():
        tensors[name], values[name] = stored_values(shape, dtype, rng)
    write_weights(folder, tensors, shards=shards, index=index)
    write_tokenizer(folder)
    return values


def read_weights(folder: Path) -> dict[str, Stored]:
    """The tensors of a checkpoint that write_checkpoint made, for tests that change them."""
    tensors: dict[str, Stored] = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            raw = data[8 + length + begin : 8 + length + end]
            tensors[name] = (entry["dtype"], tuple(entry["shape"]), raw)
    return tensors
