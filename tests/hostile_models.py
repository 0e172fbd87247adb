"""Recipes of model metadata that a GGUF container may hold and that no model can have: by name, a
small file with the fault. The container reader must take each for what it is: a sound container."""

from __future__ import annotations

from collections.abc import Callable

import gguf_bytes as gb
from hostile_gguf import Case

N_VOCAB = 8
N_EMBD = 8
N_FF = 8
N_LAYER = 1
_TOKENS = ["<unk>", "<s>", "</s>", "<0x0A>", "\u2581", "a", "b", "ab"]

Pairs = dict[str, bytes]
Tensors = dict[str, tuple[tuple[int, ...], bytes]]
Change = Callable[[gb.Layout, Pairs, Tensors], None]


def sound_pairs(g: gb.Layout) -> Pairs:
    """The metadata of a phi3 model of one layer and eight tokens."""
    numbers = {
        "phi3.context_length": 64,
        "phi3.embedding_length": N_EMBD,
        "phi3.block_count": N_LAYER,
        "phi3.feed_forward_length": N_FF,
        "phi3.attention.head_count": 2,
        "phi3.attention.head_count_kv": 2,
        "phi3.rope.dimension_count": 4,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
    }
    name = "general.architecture"
    pairs = {name: g.pair(name, gb.STRING, g.string("phi3"))}
    pairs |= {key: g.number(key, gb.UINT32, value) for key, value in numbers.items()}
    name = "phi3.attention.layer_norm_rms_epsilon"
    pairs[name] = g.number(name, gb.FLOAT32, 1e-5)
    name = "tokenizer.ggml.model"
    pairs[name] = g.pair(name, gb.STRING, g.string("llama"))
    pairs["tokenizer.ggml.tokens"] = g.strings("tokenizer.ggml.tokens", _TOKENS)
    name = "tokenizer.ggml.scores"
    pairs[name] = g.numbers(name, gb.FLOAT32, [-float(i) for i in range(N_VOCAB)])
    name = "tokenizer.ggml.token_type"
    pairs[name] = g.numbers(name, gb.INT32, [2, 3, 3, 6, 1, 1, 1, 1])
    return pairs


def sound_tensors(g: gb.Layout) -> Tensors:
    """Its tensors: ggml's dimensions and the bytes, all F32."""
    shapes = {
        "token_embd.weight": (N_EMBD, N_VOCAB),
        "output.weight": (N_EMBD, N_VOCAB),
        "output_norm.weight": (N_EMBD,),
        "blk.0.attn_norm.weight": (N_EMBD,),
        "blk.0.attn_qkv.weight": (N_EMBD, 3 * N_EMBD),
        "blk.0.attn_output.weight": (N_EMBD, N_EMBD),
        "blk.0.ffn_norm.weight": (N_EMBD,),
        "blk.0.ffn_up.weight": (N_EMBD, 2 * N_FF),
        "blk.0.ffn_down.weight": (N_FF, N_EMBD),
    }
    return {name: filled(g, ne, 1.0) for name, ne in shapes.items()}


def filled(g: gb.Layout, ne: tuple[int, ...], value: float) -> tuple[tuple[int, ...], bytes]:
    n = 1
    for size in ne:
        n *= size
    return ne, g.pack("f", value) * n


def built(g: gb.Layout, pairs: Pairs, tensors: Tensors) -> bytes:
    """The file. Data are whole multiples of the alignment, as all sizes here are."""
    descriptions, data = [], b""
    for name, (ne, values) in tensors.items():
        descriptions.append(g.tensor(name, ne, gb.F32, offset=len(data)))
        data += values + bytes(-len(values) % 32)
    return g.gguf(list(pairs.values()), descriptions, data)


def numbered(key: str, value: int, kind: int = gb.UINT32) -> Change:
    def change(g: gb.Layout, pairs: Pairs, tensors: Tensors) -> None:
        pairs[key] = g.number(key, kind, value)

    return change


def listed(key: str, kind: int, values: list[float]) -> Change:
    def change(g: gb.Layout, pairs: Pairs, tensors: Tensors) -> None:
        pairs[key] = g.numbers(key, kind, values)

    return change


def texts(key: str, values: list[str]) -> Change:
    def change(g: gb.Layout, pairs: Pairs, tensors: Tensors) -> None:
        pairs[key] = g.strings(key, values)

    return change


def without(name: str) -> Change:
    def change(g: gb.Layout, pairs: Pairs, tensors: Tensors) -> None:
        pairs.pop(name, None)
        tensors.pop(name, None)

    return change


def shaped(name: str, ne: tuple[int, ...], value: float = 1.0) -> Change:
    def change(g: gb.Layout, pairs: Pairs, tensors: Tensors) -> None:
        tensors[name] = filled(g, ne, value)

    return change


def together(*changes: Change) -> Change:
    def change(g: gb.Layout, pairs: Pairs, tensors: Tensors) -> None:
        for each in changes:
            each(g, pairs, tensors)

    return change


SCORES, TOKEN_TYPE = "tokenizer.ggml.scores", "tokenizer.ggml.token_type"
SHORT_FACTORS, LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"

CHANGES: dict[str, Change] = {
    "sound": together(),
    "scores of UINT8": listed(SCORES, gb.UINT8, [0] * N_VOCAB),
    "scores of FLOAT64": listed(SCORES, gb.FLOAT64, [0.0] * N_VOCAB),
    "scores too few": listed(SCORES, gb.FLOAT32, [0.0] * (N_VOCAB - 1)),
    "scores too many": listed(SCORES, gb.FLOAT32, [0.0] * (N_VOCAB + 1)),
    "scores empty": listed(SCORES, gb.FLOAT32, []),
    "scores NaN": listed(SCORES, gb.FLOAT32, [float("nan")] * N_VOCAB),
    "scores of strings": texts(SCORES, ["0"] * N_VOCAB),
    "scores one number": numbered(SCORES, 0),
    "token_type of UINT8": listed(TOKEN_TYPE, gb.UINT8, [1] * N_VOCAB),
    "token_type of INT64": listed(TOKEN_TYPE, gb.INT64, [1] * N_VOCAB),
    "token_type too few": listed(TOKEN_TYPE, gb.INT32, [1]),
    "token_type out of range": listed(TOKEN_TYPE, gb.INT32, [-1, 99, *[2**31 - 1] * 6]),
    "suppress_tokens of UINT8": listed("tokenizer.ggml.suppress_tokens", gb.UINT8, [1, 2, 3]),
    "merges of numbers": listed("tokenizer.ggml.merges", gb.INT32, [1, 2]),
    "merges without a space": texts("tokenizer.ggml.merges", ["ab", "", " ", "a b c"]),
    "tokens of numbers": listed("tokenizer.ggml.tokens", gb.UINT32, list(range(N_VOCAB))),
    "tokens alike": texts("tokenizer.ggml.tokens", ["a"] * N_VOCAB),
    "tokens empty": texts("tokenizer.ggml.tokens", []),
    "tokens more than the embedding": texts(
        "tokenizer.ggml.tokens", [f"token {i}" for i in range(4 * N_VOCAB)]
    ),
    "tokens absent": without("tokenizer.ggml.tokens"),
    **{f"block_count {n}": numbered("phi3.block_count", n) for n in (0, 2, 513, 2**31)},
    "block_count of FLOAT32": numbered("phi3.block_count", 1, gb.FLOAT32),
    "block_count -1": numbered("phi3.block_count", -1, gb.INT32),
    "n_head 0": numbered("phi3.attention.head_count", 0),
    "n_head 2^31": numbered("phi3.attention.head_count", 2**31),
    "n_head_kv 0": numbered("phi3.attention.head_count_kv", 0),
    "n_head_kv more than n_head": numbered("phi3.attention.head_count_kv", 8),
    "n_head_kv an array": listed("phi3.attention.head_count_kv", gb.UINT32, [2] * 600),
    "n_embd no multiple of n_head": numbered("phi3.attention.head_count", 3),
    "n_embd 0": numbered("phi3.embedding_length", 0),
    "n_ff 0": numbered("phi3.feed_forward_length", 0),
    "context_length 0": numbered("phi3.context_length", 0),
    "rope dimensions more than a head": numbered("phi3.rope.dimension_count", 4096),
    "rope factors too few": together(shaped(SHORT_FACTORS, (1,)), shaped(LONG_FACTORS, (2,))),
    "rope factors too many": together(shaped(SHORT_FACTORS, (64,)), shaped(LONG_FACTORS, (64,))),
    "rope factors zero": together(shaped(SHORT_FACTORS, (2,), 0.0), shaped(LONG_FACTORS, (2,))),
    "rope factors NaN": together(
        shaped(SHORT_FACTORS, (2,)), shaped(LONG_FACTORS, (2,), float("nan"))
    ),
    "more experts used than there are": together(
        numbered("phi3.expert_count", 4), numbered("phi3.expert_used_count", 8)
    ),
    "expert_count 2^31": numbered("phi3.expert_count", 2**31),
    **{
        f"{name} beyond the vocabulary": numbered(f"tokenizer.ggml.{name}_token_id", value)
        for name, value in (("bos", N_VOCAB), ("eos", 2**31), ("padding", 2**32 - 1))
    },
    "bos negative": numbered("tokenizer.ggml.bos_token_id", -1, gb.INT32),
    "embedding absent": without("token_embd.weight"),
    "norm absent": without("output_norm.weight"),
    "embedding of another width": shaped("token_embd.weight", (N_EMBD * 2, N_VOCAB)),
    "embedding of fewer tokens": shaped("token_embd.weight", (N_EMBD, N_VOCAB - 1)),
    "attention misshapen": shaped("blk.0.attn_qkv.weight", (N_EMBD, N_EMBD)),
    "norm of two dimensions": shaped("output_norm.weight", (N_EMBD, 2)),
    "architecture absent": without("general.architecture"),
    "architecture a number": numbered("general.architecture", 3),
    "architecture unknown": lambda g, pairs, tensors: pairs.update(
        {"general.architecture": g.pair("general.architecture", gb.STRING, g.string("phi\xff9"))}
    ),
}


def cases(layout: gb.Layout) -> dict[str, Case]:
    found: dict[str, Case] = {}
    for name, change in CHANGES.items():
        pairs, tensors = sound_pairs(layout), sound_tensors(layout)
        change(layout, pairs, tensors)
        found[name] = Case(built(layout, pairs, tensors))
    return found
