"""Models with one thing wrong, each with what the error must name. Run as a script, it loads all
of them in one process and prints how each ended: `python hostile_loads.py FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import gguf_bytes
import hostile_models
import phiggml as pg
from small_models import (
    ARCHITECTURES,
    N_EMBD,
    N_EXPERT,
    N_FF,
    N_HEAD_DIM,
    N_LAYER,
    N_VOCAB,
    Change,
    SmallModel,
    small_model,
)

# (architecture, change, what the error must name; None where the model must work)
Case = tuple[str, Change, str | None]


def put(key: str, value: Any, type: str | None = None) -> Change:
    """Sets a metadata value; a number is of UINT32 unless a type is given."""

    def change(model: SmallModel) -> None:
        exact = type or ("UINT32" if isinstance(value, int) else None)
        model.metadata[model.key(key)] = value if exact is None else pg.GGUFValue(value, exact)

    return change


def drop(name: str) -> Change:
    """Takes away a key or a tensor."""

    def change(model: SmallModel) -> None:
        gone = model.metadata.pop(model.key(name), None), model.tensors.pop(name, None)
        assert any(value is not None for value in gone), name

    return change


def put_tensor(name: str, values: Any) -> Change:
    return lambda model: model.tensors.update({name: values})


def changed_tensor(name: str, changed: Callable[[Any], Any]) -> Change:
    return lambda model: model.tensors.update({name: changed(model.tensors[name])})


def changed_tokens(changes: dict[int, str]) -> Change:
    def change(model: SmallModel) -> None:
        tokens = model.metadata["tokenizer.ggml.tokens"]
        for number, text in changes.items():
            tokens[number] = text

    return change


def together(*changes: Change) -> Change:
    return lambda model: [change(model) for change in changes]


def each_layer(name: str, change: Callable[[str], Change]) -> Change:
    return together(*(change(f"blk.{i}.{name}") for i in range(N_LAYER)))


def fused(model: SmallModel) -> None:
    """Puts the three matrices of attention into one."""
    for i in range(N_LAYER):
        parts = [model.tensors.pop(f"blk.{i}.attn_{part}.weight") for part in "qkv"]
        model.tensors[f"blk.{i}.attn_qkv.weight"] = np.concatenate(parts)


def separate(model: SmallModel) -> None:
    for i in range(N_LAYER):
        rows = model.tensors.pop(f"blk.{i}.attn_qkv.weight")
        parts = np.split(rows, [N_EMBD, (len(rows) + N_EMBD) // 2])
        for part, values in zip("qkv", parts, strict=True):
            model.tensors[f"blk.{i}.attn_{part}.weight"] = values


def of_type(name: str, type: str) -> Change:
    def change(model: SmallModel) -> None:
        model.tensors[name] = pg.quantize(model.tensors[name].astype(np.float32), type)

    return change


COUNTS = {
    ".context_length": (0, 2**31),
    ".embedding_length": (0, N_EMBD - 1, 2**31),
    ".block_count": (0, N_LAYER - 1, N_LAYER + 1, 513, 2**31),
    ".feed_forward_length": (0, N_FF + 1),
    ".attention.head_count": (0, 3, 2**31),
    ".attention.head_count_kv": (0, 3, 8, 2**31),
    ".attention.key_length": (0, 17, 2 * N_HEAD_DIM, 2**31),
    ".attention.value_length": (0, 17, 2 * N_HEAD_DIM, 2**31),
    ".rope.dimension_count": (0, 1, 7, N_HEAD_DIM + 2, 2**31),
    ".expert_count": (4, 1025, 2**31),
    ".expert_used_count": (1, 2**31),
    ".expert_group_count": (1, 8, 2**31),
    ".nextn_predict_layers": (N_LAYER + 1, 2**31),
    ".pooling_type": (99,),
    ".attention.sliding_window": (2**31,),
}
# Faults that show in a tensor.
SHOWN = {
    (".block_count", N_LAYER + 1): f"blk.{N_LAYER}.attn_norm.weight is missing",
    (".feed_forward_length", N_FF + 1): "ffn_down.weight has shape",
    (".expert_count", 4): "expert_used_count",
}
PER_LAYER = (".attention.head_count", ".attention.head_count_kv", ".feed_forward_length")
NUMBERS = (".rope.freq_base", ".rope.scaling.factor", ".rope.scaling.attn_factor")
REQUIRED = (
    ".context_length",
    ".embedding_length",
    ".block_count",
    ".feed_forward_length",
    ".attention.head_count",
    "tokenizer.ggml.model",
    "tokenizer.ggml.tokens",
)


def metadata_cases(name: str) -> dict[str, Case]:
    """Of hyperparameters."""
    found: dict[str, Case] = {}

    def add(what: str, change: Change, expected: str | None) -> None:
        found[f"{name}: {what}"] = (name, change, expected)

    for key, values in COUNTS.items():
        for value in values:
            add(f"{key}={value}", put(key, value), SHOWN.get((key, value), key))
        add(f"{key} of INT32", put(key, -1, "INT32"), key)
        add(f"{key} of FLOAT32", put(key, 1.0, "FLOAT32"), key)
        add(f"{key} a text", put(key, "4"), key)
        add(f"{key} an array of 600", put(key, [1] * 600, "UINT32"), key)
    for key in PER_LAYER:
        add(f"{key} differs", put(key, [4, 2], "UINT32"), key)
        add(f"{key} has zero", put(key, [0, 4], "INT32"), key)
        add(f"{key} negative", put(key, [-1, -1], "INT32"), key)
        add(f"{key} of booleans", put(key, [True, True], "BOOL"), key)
    for key in NUMBERS:
        for bad in (np.nan, np.inf):
            add(f"{key}={bad}", put(key, bad, "FLOAT32"), key)
        add(f"{key} of UINT32", put(key, 1), key)
    add("rope base 0", put(".rope.freq_base", 0.0, "FLOAT32"), ".rope.freq_base is 0.0")
    for bad in (np.nan, -1.0, np.inf):
        key = ".attention.layer_norm_rms_epsilon"
        add(f"epsilon {bad}", put(key, bad, "FLOAT32"), key)
    add("epsilon absent", drop(".attention.layer_norm_rms_epsilon"), "epsilon")
    for key in (".rope.scaling.type", ".classifier.activation"):
        add(f"{key} unknown", put(key, "x"), key)
        add(f"{key} a number", put(key, 1), key)
    add("causal a number", put(".attention.causal", 1), "attention.causal")
    add("name a number", put("general.name", 1), "general.name")
    add("file type a text", put("general.file_type", "F16"), "general.file_type")
    for key in REQUIRED:
        add(f"{key} absent", drop(key), f"{key} is missing")
    add("one array for all layers", put(".attention.head_count", [4, 4], "UINT32"), None)
    add("no window", put(".attention.sliding_window", 0), None)
    add("architecture absent", drop("general.architecture"), "names no architecture")
    add("architecture unknown", put("general.architecture", "x"), "unknown model architecture")
    add("an adapter", put("general.type", "adapter"), "a LoRA adapter")
    return found


TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
SCORES, MERGES = "tokenizer.ggml.scores", "tokenizer.ggml.merges"
OWN = "phiggml.tokenizer."


def vocabulary_cases() -> dict[str, Case]:
    """Of SentencePiece's and of byte-level vocabularies."""
    spm: dict[str, tuple[Change, str | None]] = {
        "tokens empty": (put(TOKENS, [], "STRING"), TOKENS),
        "tokens of numbers": (put(TOKENS, [1] * N_VOCAB, "UINT32"), TOKENS),
        "tokens alike": (changed_tokens({7: "a", 8: "a"}), "twice"),
        "tokens alike up to NUL": (changed_tokens({7: "x\0b", 8: "x\0c"}), "twice"),
        "tokens named as an empty one": (changed_tokens({7: "", 8: "[EMPTY_7]"}), "twice"),
        "one token empty": (changed_tokens({270: ""}), None),
        "a token of 20000 characters": (changed_tokens({270: "\u4f60" * 20000}), "too long"),
        "a byte that says none": (changed_tokens({7: "<0"}), TYPES),
        "tokens too many": (put(TOKENS, [f"t{i}" for i in range(N_VOCAB + 1)]), "token_embd"),
        "types too few": (put(TYPES, [1] * (N_VOCAB - 1), "INT32"), TYPES),
        "types of UINT32": (put(TYPES, [1] * N_VOCAB, "UINT32"), TYPES),
        "types out of range": (put(TYPES, [99] * N_VOCAB, "INT32"), None),
        "scores too few": (put(SCORES, [0.0], "FLOAT32"), SCORES),
        "scores of FLOAT64": (put(SCORES, [0.0] * N_VOCAB, "FLOAT64"), SCORES),
        "scores NaN": (put(SCORES, [np.nan] * N_VOCAB, "FLOAT32"), SCORES),
        "scores one number": (put(SCORES, 1.0, "FLOAT32"), SCORES),
        "scores too many": (put(SCORES, [0.0] * (N_VOCAB + 1), "FLOAT32"), None),
        "model a number": (put("tokenizer.ggml.model", 1), "tokenizer.ggml.model"),
        "no merges": (put("tokenizer.ggml.model", "gpt2"), MERGES),
        "bytes in BERT": (put("tokenizer.ggml.model", "bert"), TYPES),
        "rwkv without single bytes": (put("tokenizer.ggml.model", "rwkv"), "one byte"),
        "a name that says Phi-3": (put("general.name", "My Phi-3"), "lacks <|endoftext|>"),
        "a name that says so rightly": (
            together(put("general.name", "My Phi-3"), changed_tokens({270: "<|endoftext|>"})),
            None,
        ),
        "no id for the unknown": (put("tokenizer.ggml.unknown_token_id", 2**32 - 1), None),
        "BOS a flag": (put("tokenizer.ggml.add_bos_token", 1), "add_bos_token"),
        "no vocabulary, and large": (
            together(put("tokenizer.ggml.model", "none"), put(".vocab_size", 2**32 - 1)),
            "vocab_size",
        ),
        "no vocabulary, and larger": (
            together(put("tokenizer.ggml.model", "none"), put(".vocab_size", N_VOCAB + 1)),
            "token_embd",
        ),
        "no vocabulary": (
            together(put("tokenizer.ggml.model", "none"), put(".vocab_size", N_VOCAB)),
            None,
        ),
        **{
            f"{token} beyond": (put(key := f"tokenizer.ggml.{token}_token_id", N_VOCAB), key)
            for token in ("bos", "eos", "eot", "unknown", "padding", "fim_pre")
        },
    }
    bpe: dict[str, tuple[Change, str | None]] = {
        "merges of numbers": (put(MERGES, [1, 2], "INT32"), MERGES),
        "merges one text": (put(MERGES, "a a"), MERGES),
        "merges odd": (put(MERGES, ["", " ", "aa", "a  a"], "STRING"), None),
        "whitespace": (put("tokenizer.ggml.pre", "whitespace"), "tokenizer.ggml.pre"),
        "pre a number": (put("tokenizer.ggml.pre", 1), "tokenizer.ggml.pre"),
    }
    return (
        {f"phi3: {what}": ("phi3", *case) for what, case in spm.items()}
        | {f"qwen2: {what}": ("qwen2", *case) for what, case in bpe.items()}
        | added_token_cases()
    )


def added_token_cases() -> dict[str, Case]:
    """Of the keys that only our tokenizer reads."""
    every = [put(OWN + flag, list(range(N_VOCAB)), "INT32") for flag in ("lstrip", "normalized")]
    cases: dict[str, tuple[Change, str | None]] = {
        "a scheme of numbers": (put(OWN + "prepend_scheme", 1), OWN + "prepend_scheme"),
        "an unknown scheme": (put(OWN + "prepend_scheme", "sometimes"), None),
        "a scheme": (put(OWN + "prepend_scheme", "first"), None),
        "flags of texts": (put(OWN + "lstrip", ["a"], "STRING"), OWN + "lstrip"),
        "flags of one number": (put(OWN + "rstrip", 1), OWN + "rstrip"),
        "ends of floats": (put(OWN + "end_ids", [1.5], "FLOAT32"), OWN + "end_ids"),
        "ends beyond": (put(OWN + "end_ids", [-1, 2**31 - 1], "INT32"), None),
        "flags of all tokens": (together(*every), None),
        "flags of ids that are none": (
            put(OWN + "single_word", [-1, N_VOCAB, 2**31 - 1], "INT32"),
            None,
        ),
        "flags of nothing": (put(OWN + "normalized", np.zeros(0, np.int32), "INT32"), None),
        "all user-defined": (put(TYPES, [4] * N_VOCAB, "INT32"), None),
        "all special": (put(TYPES, [3] * N_VOCAB, "INT32"), None),
        "all unused": (put(TYPES, [5] * N_VOCAB, "INT32"), None),
    }
    return {
        f"{name}: {what}": (name, *case)
        for name in ("phi3", "phi2", "qwen2")
        for what, case in cases.items()
    }


BIAS = "blk.0.attn_q.bias"
LONG, SHORT, FREQS = (f"rope_{name}.weight" for name in ("factors_long", "factors_short", "freqs"))


def expert_cases(name: str) -> dict[str, Case]:
    """Of models with experts."""
    used, count = ".expert_used_count", ".expert_count"
    cases: dict[str, tuple[Change, str | None]] = {
        "more used than there are": (put(used, N_EXPERT + 1), used),
        "none used": (put(used, 0), used),
        "used absent": (drop(used), used),
        "used differs": (put(used, [2, 1], "UINT32"), used),
        "used in one layer": (put(used, [0, 2], "UINT32"), used),
        "all used": (put(used, N_EXPERT), used if name == "phimoe" else None),
        "more experts": (put(count, N_EXPERT + 1), "ffn_gate_inp.weight has shape"),
        "groups do not divide": (put(".expert_group_count", 3), ".expert_group_count"),
        "groups unused": (put(".expert_group_count", 2), ".expert_group_used_count"),
        "no router": (drop("blk.1.ffn_gate_inp.weight"), "blk.1.ffn_gate_inp.weight is missing"),
        "router of NaN": (changed_tensor("blk.0.ffn_gate_inp.weight", lambda x: x * np.nan), None),
    }
    if name == "phimoe":
        cases |= mixer_cases()
    return {f"{name}: {what}": (name, *case) for what, case in cases.items()}


def mixer_cases() -> dict[str, tuple[Change, str | None]]:
    """Of the keys that only our graph of phimoe reads, and of what may be absent there."""
    jitter, beyond = ".router_jitter_noise", ".rope.scaling.attn_factor_long"
    original = ".rope.scaling.original_context_length"
    cases: dict[str, tuple[Change, str | None]] = {
        f"jitter {value}": (put(jitter, value, "FLOAT32"), jitter)
        for value in (np.nan, np.inf, -0.1)
    }
    cases |= {f"factor {value}": (put(beyond, value, "FLOAT32"), beyond) for value in (np.nan, 0.0)}
    return cases | {
        "jitter of a count": (put(jitter, 1), jitter),
        "great jitter": (put(jitter, 1e30, "FLOAT32"), None),
        "factor": (put(beyond, 1.5, "FLOAT32"), None),
        "no line": (put(original, 0), original),
        "line at 1": (put(original, 1), None),
        "tied": (drop("output.weight"), None),
        "no bias at the end": (drop("output.bias"), None),
    }


def tensor_cases() -> dict[str, Case]:
    """Of shapes, types and contents."""
    found: dict[str, Case] = {}
    for name in ARCHITECTURES:
        found[f"{name}: sound"] = (name, lambda model: None, None)
        for tensor, values in small_model(name).tensors.items():
            if tensor.startswith("blk.0.") or (tensor == "output.weight" and "phi3" not in name):
                continue
            optional = tensor in ("output.weight", FREQS) or tensor.endswith("bias")
            if not optional:
                found[f"{name}: no {tensor}"] = (name, drop(tensor), f"{tensor} is missing")
            wrong = np.zeros((*values.shape[:-1], values.shape[-1] * 2), values.dtype)
            found[f"{name}: {tensor} wide"] = (name, put_tensor(tensor, wrong), f"{tensor} has")
    factors = np.ones(N_HEAD_DIM // 2, np.float32)
    phi3: dict[str, tuple[Change, str | None]] = {
        "tied": (drop("output.weight"), None),
        "separate": (separate, None),
        "no attention": (drop("blk.0.attn_qkv.weight"), "blk.0.attn_qkv.weight is missing"),
        "norm of F16": (changed_tensor("output_norm.weight", np.float16), "output_norm.weight is"),
        "weight of F64": (changed_tensor("output.weight", np.float64), "output.weight is"),
        "weight of I32": (changed_tensor("output.weight", np.int32), "output.weight is"),
        "scale of F16": (put_tensor("blk.0.ffn_up.scale", np.ones(1, np.float16)), "ffn_up.scale"),
        "long factors alone": (drop(SHORT), SHORT),
        "factors of F16": (changed_tensor(LONG, np.float16), LONG),
        "factors too many": (put_tensor(LONG, np.ones(64, np.float32)), LONG),
        **{
            f"factors {bad}": (put_tensor(LONG, np.where(np.arange(8) == 3, bad, factors)), LONG)
            for bad in (np.float32(0), np.float32(np.nan), np.float32(np.inf), np.float32(-1))
        },
        "tensors absent": (lambda model: model.tensors.clear(), "vocabulary only"),
        "a tensor more": (put_tensor("more.weight", np.zeros((4, 4), np.float32)), "refuses"),
    }
    biased = put_tensor(BIAS, np.ones(N_EMBD, np.float32))
    llama: dict[str, tuple[Change, str | None]] = {
        "fused": (fused, None),
        "frequencies of BF16": (of_type(FREQS, "BF16"), FREQS),
        "bias": (biased, None),
        "bias of F16": (
            put_tensor("blk.0.attn_q.bias", np.ones(N_EMBD, np.float16)),
            "attn_q.bias",
        ),
        "bias of Q8_0": (
            together(
                put_tensor("blk.0.attn_q.bias", np.ones(N_EMBD, np.float32)),
                of_type("blk.0.attn_q.bias", "Q8_0"),
            ),
            "attn_q.bias",
        ),
        "weights of Q8_0": (each_layer("ffn_up.weight", lambda name: of_type(name, "Q8_0")), None),
    }
    return (
        found
        | {f"phi3: {what}": ("phi3", *case) for what, case in phi3.items()}
        | {f"llama: {what}": ("llama", *case) for what, case in llama.items()}
    )


CASES: dict[str, Case] = {
    **metadata_cases("phi3"),
    **metadata_cases("llama"),
    **vocabulary_cases(),
    **expert_cases("llama-moe"),
    **expert_cases("phimoe"),
    **tensor_cases(),
}


def written(folder: Path, name: str) -> Path:
    """The file of a case."""
    architecture, change, _ = CASES[name]
    model = small_model(architecture)
    change(model)
    return model.write(folder / "case.gguf")


def used(path: Path) -> None:
    """Loads a model and does with it what everybody does."""
    with pg.Model(path) as model, pg.Session(model, n_ctx=32) as session:
        session.eval([1, 2, 3])
        session.eval([0, model.n_vocab - 1], logits="all")
        for call in (
            lambda: model.tokenize("a ab \u4f60"),
            lambda: model.tokenize(" a<s>\n ab<|end|>", parse_special=True),
            lambda: model.detokenize(model.tokenize("a\nb", add_special=False)),
            lambda: model.detokenize(range(model.n_vocab), special=True),
        ):
            try:
                call()
            except (pg.UnsupportedError, pg.FormatError) as error:
                assert "tokenize: " in str(error), error


def ending(path: Path) -> str:
    """What using a model ends in."""
    try:
        used(path)
    except pg.FormatError as error:
        return f"FormatError {error.path == str(path)} {str(error)!r}"
    except pg.PhiggmlError as error:
        return f"{type(error).__name__} {error}"
    return "works"


def main(folder: Path) -> None:
    for name in CASES:
        print(f"{name}\t{ending(written(folder, name))}", flush=True)
    path = folder / "case.gguf"
    for name, case in hostile_models.cases(gguf_bytes.Layout()).items():
        path.write_bytes(case.content)
        print(f"container: {name}\t{ending(path)}", flush=True)
    print("all done")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
