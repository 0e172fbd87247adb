"""What a converted model is called, against the gguf package's reading of the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import checkpoints
from phiggml.conversion import plan_conversion
from phiggml.conversion.naming import named_for_tokenizer, parse_model_id, size_label, title

IDS = (
    "microsoft/Phi-3-mini-4k-instruct",
    "microsoft/Phi-3-mini-128k-instruct",
    "microsoft/Phi-3.5-mini-instruct",
    "microsoft/Phi-3-medium-4k-instruct",
    "microsoft/phi-4",
    "microsoft/Phi-4-mini-instruct",
    "microsoft/Phi-4-reasoning-plus",
    "phi3-nano",
    "phi3-mini-tiny",
    "me/phi-3-mini-dolphin-v2.1",
    "Phi-3-mini-f16-lora",
    "Mistral/Mixtral-8x7B-Instruct-v0.1",
    "Qwen1.5-MoE-A2.7B-Chat",
    "daybreak-kunoichi-2dpo-7b",
    "bloom-7b1",
    "stablelm-2-1_6b-chat",
    "a model of mine",
    "./Phi-3-mini",
    "checkpoint-1000",
    "Phi-3-q4_K-small-3.8B",
    "--x--",
    "model",
)
COUNTS = (1, 999, 1000, 1001, 12_345, 999_499, 10**6, 3_821_079_552, 13_960_238_080, 2 * 10**12)


@pytest.mark.parametrize("parameters", [0, 69_824, 3_821_079_552])
@pytest.mark.parametrize("model_id", IDS)
def test_ids_are_taken_apart_as_the_gguf_package_does(model_id: str, parameters: int) -> None:
    ours = parse_model_id(model_id, parameters)
    theirs = gguf.Metadata.get_model_id_components(model_id, parameters)
    found = (ours.name, ours.organization, ours.basename, ours.finetune, ours.version, ours.size)
    assert found == theirs
    assert title(str(ours.name)) == gguf.Metadata.id_to_title(theirs[0])


@pytest.mark.parametrize("count", COUNTS)
def test_size_labels(count: int) -> None:
    assert size_label(count) == gguf.size_label(count, count, 0, 0)


@pytest.mark.parametrize(
    ("name", "stripping", "keeping"),
    [
        ("Phi 3 Mini 4k Instruct", "Phi-3 Mini 4k Instruct", "Phi 3 Mini 4k Instruct"),
        ("Phi 3.5 Mini", "Phi-3.5 Mini", "Phi 3.5 Mini"),
        ("Phi3 Nano", "Phi3 Nano", "Phi 3 Nano"),
        ("PHI-3 Tune", "PHI-3 Tune", "PHI 3 Tune"),
        ("Dolphin", "Phi-3 Dolphin", "Dolphin"),
    ],
)
def test_the_name_says_phi_3_exactly_when_white_space_is_stripped(
    name: str, stripping: str, keeping: str
) -> None:
    assert named_for_tokenizer(name, strips=True) == stripping
    assert named_for_tokenizer(name, strips=False) == keeping
    for spelled, strips in ((stripping, True), (keeping, False)):
        # What llama.cpp looks for, in lower case.
        assert any(word in spelled.lower() for word in ("phi-3", "phi3")) is strips


def named(folder: Path, **changes: Any) -> str:
    checkpoints.write_checkpoint(folder)
    checkpoints.write_tokenizer(folder, **changes)
    return str(plan_conversion(folder).metadata["general.name"])


def test_the_tokenizers_flags_decide_the_name(tmp_path: Path) -> None:
    assert named(tmp_path / "phi-3-tune") == "Phi-3 Tune"
    keeping = {
        str(i): checkpoints.added_token(m, rstrip=False) for m, i in checkpoints.MARKER_IDS.items()
    }
    assert named(tmp_path / "phi-3-kept", added_tokens_decoder=keeping) == "Phi 3 Kept"


def test_a_vocabulary_without_the_tokens_llama_cpp_looks_up_is_not_named_phi_3(
    tmp_path: Path,
) -> None:
    checkpoints.write_checkpoint(tmp_path / "phi-3-x")
    pieces = [("<none>", 0.0, 2) if p[0] == "<unk>" else p for p in checkpoints.PIECES]
    model = checkpoints.sentencepiece_model(pieces)
    (tmp_path / "phi-3-x" / "tokenizer.model").write_bytes(model)
    config = checkpoints.tokenizer_config()
    del config["added_tokens_decoder"]["0"]
    checkpoints.write_json(tmp_path / "phi-3-x" / "tokenizer_config.json", config)
    assert plan_conversion(tmp_path / "phi-3-x").metadata["general.name"] == "Phi 3 X"


CARD = """---
license: mit
license_link: "https://example.org/LICENSE"
language:
- multilingual
- no
tags: [nlp, 'code']
pipeline_tag: text-generation # what it does
widget:
  - messages:
      - role: user
        content: "Can you?"
extra: {a: 1}
---
license: none
"""


def test_general_metadata_come_from_card_config_and_folder(tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    id_ = {"_name_or_path": "microsoft/Phi-3.5-mini-instruct"}
    checkpoints.write_checkpoint(folder, changes=id_)
    (folder / "README.md").write_text(CARD)
    sampling = {"temperature": 0.5, "top_k": 40, "top_p": 1, "min_p": None, "do_sample": True}
    checkpoints.write_json(folder / "generation_config.json", sampling)
    metadata = plan_conversion(folder).metadata
    found = {k.removeprefix("general."): v for k, v in metadata.items() if k.startswith("general.")}
    assert found == {
        "architecture": "phi3",
        "type": "model",
        "name": "Phi-3.5 Mini Instruct",
        "organization": "Microsoft",
        "basename": "Phi-3.5",
        "finetune": "instruct",
        "size_label": "mini",
        "license": "mit",
        "license.link": "https://example.org/LICENSE",
        "tags": ["nlp", "code", "text-generation"],
        "languages": ["multilingual", "no"],
        "sampling.temp": np.float32(0.5),
        "sampling.top_k": np.int32(40),
        "sampling.top_p": np.float32(1),
    }
    assert isinstance(found["sampling.top_k"], np.int32)


@pytest.mark.parametrize("card", ["", "---\n", "# title\n", "---\nlicense: mit\n", "\x00\udcff"])
def test_a_card_without_front_matter_says_nothing(card: str, tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path)
    (tmp_path / "README.md").write_bytes(card.encode("utf-8", "surrogateescape"))
    assert "general.license" not in plan_conversion(tmp_path).metadata
