"""Models that embed texts and generate none, of two layers, and what numpy makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from small_models import SmallModel

N_LAYER, N_EMBD, N_HEAD, N_FF, N_CTX = 2, 32, 4, 48, 24
WORDS = ("cat", "dog", "sat", "##s", "the", "a", ".")
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
EPS = 1e-5

Array = npt.NDArray[np.float64]


def bert(**metadata: Any) -> SmallModel:
    """As llama.cpp's src/models/bert.cpp wants it."""
    model = SmallModel("bert")
    numbers = {
        ".context_length": N_CTX,
        ".embedding_length": N_EMBD,
        ".block_count": N_LAYER,
        ".feed_forward_length": N_FF,
        ".attention.head_count": N_HEAD,
    }
    # Words begin with a mark in the file, as llama.cpp's converter turns them.
    spelt = [t if t.startswith("[") else t[2:] if t.startswith("##") else f"▁{t}" for t in TOKENS]
    model.metadata = {
        "general.architecture": "bert",
        "bert.attention.layer_norm_epsilon": np.float32(EPS),
        "bert.attention.causal": np.bool_(False),
        **{model.key(key): np.uint32(value) for key, value in numbers.items()},
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": spelt,
        "tokenizer.ggml.token_type": np.array([3] * 5 + [1] * len(WORDS), np.int32),
        "tokenizer.ggml.token_type_count": np.uint32(2),
        "tokenizer.ggml.bos_token_id": np.uint32(2),
        "tokenizer.ggml.eos_token_id": np.uint32(3),
        "tokenizer.ggml.seperator_token_id": np.uint32(3),
        "tokenizer.ggml.unknown_token_id": np.uint32(1),
        "tokenizer.ggml.padding_token_id": np.uint32(0),
        **metadata,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(TOKENS), N_EMBD),
        "token_types.weight": (2, N_EMBD),
        "position_embd.weight": (N_CTX, N_EMBD),
        "token_embd_norm.weight": (N_EMBD,),
        "token_embd_norm.bias": (N_EMBD,),
    }
    for i in range(N_LAYER):
        matrices = {
            **{f"attn_{part}": (N_EMBD, N_EMBD) for part in ("q", "k", "v", "output")},
            "ffn_up": (N_FF, N_EMBD),
            "ffn_down": (N_EMBD, N_FF),
        }
        for name, shape in matrices.items():
            shapes |= {f"blk.{i}.{name}.weight": shape, f"blk.{i}.{name}.bias": shape[:1]}
        for name in ("attn_output_norm", "layer_output_norm"):
            shapes |= {f"blk.{i}.{name}.{part}": (N_EMBD,) for part in ("weight", "bias")}
    random = np.random.default_rng(1810)
    for name, shape in shapes.items():
        model.tensors[name] = random.normal(0, 0.3, shape).astype(np.float32)
    return model


def bert_hidden(model: SmallModel, tokens: npt.NDArray[np.integer[Any]]) -> Array:
    """The last layer's output for each token, in float64."""
    w = {name: values.astype(np.float64) for name, values in model.tensors.items()}

    def linear(x: Array, name: str) -> Array:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Array, name: str) -> Array:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def heads(x: Array) -> Array:
        return x.reshape(len(x), N_HEAD, -1).transpose(1, 0, 2)

    x = w["token_embd.weight"][tokens] + w["position_embd.weight"][: len(tokens)]
    x = norm(x + w["token_types.weight"][0], "token_embd_norm")
    for i in range(N_LAYER):
        q, k, v = (heads(linear(x, f"blk.{i}.attn_{part}")) for part in "qkv")
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(N_EMBD / N_HEAD)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        seen = (shares @ v).transpose(1, 0, 2).reshape(len(x), -1)
        x = norm(x + linear(seen, f"blk.{i}.attn_output"), f"blk.{i}.attn_output_norm")
        up = linear(x, f"blk.{i}.ffn_up")
        up = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        x = norm(x + linear(up, f"blk.{i}.ffn_down"), f"blk.{i}.layer_output_norm")
    return x
