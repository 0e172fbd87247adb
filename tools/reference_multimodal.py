"""Tiny checkpoints of the multimodal kinds: a text model beside a few tensors of other parts.

The text part's weights are those of a plain checkpoint, so that its logits are known without the
remote code of the releases: ``write_plain`` writes it alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from reference_bpe import PHI4, PHI4_MINI, BPEFiles, BPEKind
from reference_checkpoints import (
    TinyCheckpoint,
    base_config,
    old_config,
    padded_rows,
    random_tensors,
    write_sentencepiece,
)
from reference_weights import RandomWeights, new_folder, write_config, write_tensors

Tensors = dict[str, torch.Tensor]
VISION = 8  # width of the other parts
LORA_RANK = 4
LORA_PARTS = ("mlp.down_proj", "mlp.gate_up_proj", "self_attn.o_proj", "self_attn.qkv_proj")


def vision_of_phi3(text: Tensors, w: RandomWeights, hidden: int) -> Tensors:
    """The tensors of Phi-3.5-vision: names of the text part as they were."""
    prefix = "model.vision_embed_tokens."
    encoder = prefix + "img_processor.vision_model."
    return text | {
        prefix + "glb_GN": w.matrix(1, 4 * VISION)[None],
        prefix + "img_projection.0.bias": w.bias(hidden),
        prefix + "img_projection.0.weight": w.matrix(hidden, 4 * VISION),
        prefix + "sub_GN": w.matrix(1, 4 * VISION)[None, None],
        encoder + "embeddings.class_embedding": w.bias(VISION),
        encoder + "embeddings.position_embedding.weight": w.matrix(5, VISION),
        encoder + "encoder.layers.0.self_attn.q_proj.weight": w.matrix(VISION, VISION),
    }


def vision_and_speech_of_phi4(text: Tensors, w: RandomWeights, hidden: int) -> Tensors:
    """The tensors of Phi-4-multimodal: linear layers are base layers beside two adapters each."""
    tensors: Tensors = {}
    for name, tensor in text.items():
        part = name.removesuffix(".weight")
        if not part.endswith(LORA_PARTS):
            tensors[name] = tensor
            continue
        tensors[part + ".base_layer.weight"] = tensor
        for adapter in ("speech", "vision"):
            lora_a, lora_b = (
                w.matrix(LORA_RANK, tensor.shape[1]),
                w.matrix(tensor.shape[0], LORA_RANK),
            )
            tensors[f"{part}.lora_A.{adapter}.weight"] = lora_a
            tensors[f"{part}.lora_B.{adapter}.weight"] = lora_b
    prefix = "model.embed_tokens_extend."
    audio = prefix + "audio_embed."
    image = prefix + "image_embed."
    return tensors | {
        audio + "audio_projection.speech.0.bias": w.bias(hidden),
        audio + "audio_projection.speech.0.weight": w.matrix(hidden, VISION),
        audio + "encoder.encoders.0.self_attn.linear_q.weight": w.matrix(VISION, VISION),
        image + "glb_GN": w.matrix(1, VISION)[None],
        image + "img_processor.embeddings.position_embedding.weight": w.matrix(5, VISION),
        image + "img_projection.0.weight": w.matrix(hidden, VISION),
        image + "sub_GN": w.matrix(1, VISION)[None, None],
    }


def vision_of_phi4(text: Tensors, w: RandomWeights, hidden: int) -> Tensors:
    """The tensors of Phi-4-reasoning-vision: a tower and a projector beside the text part."""
    tower = "model.vision_tower.vision_tower.vision_model."
    return text | {
        "model.mm_projector.0.bias": w.bias(hidden),
        "model.mm_projector.0.weight": w.matrix(hidden, VISION),
        "model.mm_projector.2.bias": w.bias(hidden),
        "model.mm_projector.2.weight": w.matrix(hidden, hidden),
        tower + "embeddings.patch_embedding.bias": w.bias(VISION),
        tower + "embeddings.patch_embedding.weight": w.matrix(VISION, 12),
        tower + "embeddings.position_embedding.weight": w.matrix(4, VISION),
        tower + "encoder.layers.0.self_attn.q_proj.weight": w.matrix(VISION, VISION),
    }


@dataclass(frozen=True)
class TinyMultimodal:
    """A text model, the fields of config.json and the tensors that surround it."""

    text: TinyCheckpoint
    architecture: str
    model_type: str
    fields: dict[str, object]
    surround: Callable[[Tensors, RandomWeights, int], Tensors]
    tokenizer: BPEKind | None = None


MULTIMODAL_CHECKPOINTS = (
    TinyMultimodal(
        TinyCheckpoint(
            "phi3v-tiny",
            seed=13,
            pieces=305,
            hidden=64,
            feed_forward=96,
            layers=2,
            heads=4,
            kv_heads=4,
            dtype=torch.bfloat16,
            context=131072,
            sliding_window=262144,
            rope_type="su",
            tokenizer_json=True,
        ),
        "Phi3VForCausalLM",
        "phi3_v",
        {
            "embd_layer": {"embedding_cls": "image", "hd_transform_order": "sub_glb"},
            "img_processor": {"image_dim_out": VISION, "name": "clip_vision_model"},
        },
        vision_of_phi3,
    ),
    TinyMultimodal(
        TinyCheckpoint(
            "phi4mm-tiny",
            seed=14,
            pieces=300,
            hidden=64,
            feed_forward=96,
            layers=2,
            heads=4,
            kv_heads=2,
            dtype=torch.bfloat16,
            context=131072,
            sliding_window=262144,
            rope_type="longrope",
            rotary_share=0.75,
            tied=True,
        ),
        "Phi4MMForCausalLM",
        "phi4mm",
        {
            "audio_processor": {"name": "cascades"},
            "embd_layer": {"embedding_cls": "image_audio"},
            "img_processor": None,
            "speech_lora": {"dp": 0.01, "lora_alpha": 8, "r": LORA_RANK},
            "vision_lora": {"dp": 0.0, "lora_alpha": 8, "r": LORA_RANK},
        },
        vision_and_speech_of_phi4,
        PHI4_MINI,
    ),
    TinyMultimodal(
        TinyCheckpoint(
            "phi4v-tiny",
            seed=15,
            pieces=300,
            hidden=64,
            feed_forward=96,
            layers=2,
            heads=8,
            kv_heads=2,
            dtype=torch.bfloat16,
            context=16384,
            original_context=16384,
            sliding_window=None,
            rope_theta=250000.0,
        ),
        "Phi4ForCausalLMV",
        "phi4-siglip",
        {
            "max_num_patches": 16,
            "min_num_patches": 4,
            "mm_hidden_size": VISION,
            "mm_projector_type": "mlp2x_gelu",
            "vision_config": {"hidden_size": VISION, "num_hidden_layers": 2},
        },
        vision_of_phi4,
        PHI4,
    ),
)


def _write_vocabulary(kind: TinyMultimodal, folder: Path) -> tuple[int, dict[str, int]]:
    """Write the tokenizer's files; returns the rows of the embedding and the special tokens."""
    if kind.tokenizer is None:
        pieces = write_sentencepiece(folder, kind.text, tokenizer_json=kind.text.tokenizer_json)
        end = pieces.markers["<|endoftext|>"]
        return pieces.padded_size, {"bos": 1, "eos": end, "pad": end}
    text = kind.text
    files = BPEFiles(kind.tokenizer, seed=text.seed, size=text.pieces, max_length=text.context)
    files.write(folder)
    ids = {
        "bos": files.ids["<|endoftext|>"],
        "eos": files.ids[kind.tokenizer.end],
        "pad": files.ids[kind.tokenizer.pad or ""],
    }
    return padded_rows(len(files.tokens)), ids


def write_multimodal(kind: TinyMultimodal, folder: Path) -> None:
    """Write the complete checkpoint folder of ``kind``, replacing what was there."""
    new_folder(folder)
    rows, special = _write_vocabulary(kind, folder)
    config = old_config(kind.text, base_config(kind.text, rows, special=special))
    named = {"architectures": [kind.architecture], "model_type": kind.model_type}
    write_config(folder, {**config, **kind.fields, **named})
    other = RandomWeights(kind.text.seed + 1000, kind.text.dtype)
    text = random_tensors(kind.text, rows)
    write_tensors(folder, kind.surround(text, other, kind.text.hidden))


def write_plain(kind: TinyMultimodal, multimodal: Path, folder: Path) -> None:
    """Write the text part of the checkpoint in ``multimodal`` as a plain Phi3ForCausalLM."""
    new_folder(folder)
    config = json.loads((multimodal / "config.json").read_text(encoding="utf-8"))
    plain = {name: value for name, value in config.items() if name not in kind.fields}
    named = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
    write_config(folder, {**plain, **named})
    write_tensors(folder, random_tensors(kind.text, config["vocab_size"]))
