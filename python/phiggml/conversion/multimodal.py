"""Models that also see or hear: their text part is a plain Phi-3, Phi-4-mini or Phi-4."""

from __future__ import annotations

import dataclasses

from phiggml.conversion.architecture import Form, LeftOut, TensorRule
from phiggml.conversion.phi3 import PHI3, PHI3_RULES

__all__ = ["PHI3_VISION", "PHI4_MULTIMODAL", "PHI4_VISION"]

_PROJECTIONS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


def _adapted(rule: TensorRule) -> TensorRule:
    """The rule of a projection beside which adapters lie, under the name that PEFT gives it."""
    stem, _, projection = rule.source.removesuffix(".weight").rpartition(".")
    if projection not in _PROJECTIONS:
        return rule
    return dataclasses.replace(rule, others=(Form(f"{stem}.{projection}.base_layer.weight"),))


def _adapter(kind: str) -> str:
    return rf"model\.layers\.\d+\..*_proj\.lora_[AB]\.{kind}\.weight"


PHI3_VISION = dataclasses.replace(
    PHI3,
    name="Phi3VForCausalLM",
    model_type="phi3_v",
    write_config=None,
    left_out=(LeftOut("the vision encoder and its projector", r"model\.vision_embed_tokens\..*"),),
)
PHI4_MULTIMODAL = dataclasses.replace(
    PHI3,
    name="Phi4MMForCausalLM",
    model_type="phi4mm",
    rules=tuple(map(_adapted, PHI3_RULES)),
    write_config=None,
    # transformers' own class keeps the released names of the text part.
    aliases=("Phi4MultimodalForCausalLM", "phi4_multimodal"),
    left_out=(
        LeftOut("the image encoder", r"model\.embed_tokens_extend\.image_embed\..*"),
        LeftOut("the audio encoder", r"model\.embed_tokens_extend\.audio_embed\..*"),
        LeftOut("the vision LoRA", _adapter("vision")),
        LeftOut("the speech LoRA", _adapter("speech")),
    ),
)
PHI4_VISION = dataclasses.replace(
    PHI3,
    name="Phi4ForCausalLMV",
    model_type="phi4-siglip",
    write_config=None,
    left_out=(
        LeftOut("the vision tower", r"(model\.)?vision_tower\..*"),
        LeftOut("the projector of images", r"(model\.)?mm_projector\..*"),
    ),
)
