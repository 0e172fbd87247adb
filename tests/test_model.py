"""Models: loading, tokens, devices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import phiggml as pg

DATA = Path(__file__).parent / "data"
GPUS = [device.name for device in pg.devices() if device.kind == "gpu"]


def test_facts(nano_model: pg.Model, nano_f16: Path) -> None:
    with pg.GGUFFile(nano_f16) as file:
        assert nano_model.n_vocab == file.tensors["token_embd.weight"].shape[0]
        assert nano_model.nbytes == sum(tensor.nbytes for tensor in file.tensors.values())
        assert nano_model.n_params == sum(np.prod(t.shape) for t in file.tensors.values())
        assert nano_model.metadata["general.architecture"] == "phi3"
        assert set(nano_model.placement) == set(file.tensors)
    assert set(nano_model.placement.values()) == {"CPU"}
    assert "phi3" in repr(nano_model)


def test_token_ids_equal_sentencepiece(nano_model: pg.Model) -> None:
    cases = json.loads((DATA / "tokenizer_phi3_nano.json").read_text("utf-8"))
    assert len(cases) >= 100
    for case in cases:
        ids = nano_model.tokenize(case["text"], add_special=False)
        assert ids.tolist() == case["ids"], case["text"]


def test_detokenize_inverts(nano_model: pg.Model) -> None:
    for text in ("The dog.", "naïve – façade", "日本語 🙂", "a\x00b", "two\n\n lines\t"):
        ids = nano_model.tokenize(text, add_special=False)
        assert nano_model.detokenize(ids).removeprefix(" ") == text


def test_control_tokens(nano_model: pg.Model) -> None:
    (control,) = nano_model.tokenize("<|end|>", add_special=False, parse_special=True)
    assert len(nano_model.tokenize("<|end|>", add_special=False)) > 1
    assert nano_model.detokenize([control]) == ""
    assert nano_model.detokenize([control], special=True) == "<|end|>"


def test_progress(nano_f16: Path) -> None:
    seen: list[pg.Progress] = []
    with pg.Model(nano_f16, progress=seen.append) as model:
        assert all(p.stage == "load" and p.total == model.nbytes for p in seen)
    assert seen


def test_progress_that_raises_cancels(nano_f16: Path) -> None:
    def refuse(_progress: pg.Progress) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        pg.Model(nano_f16, progress=refuse)


def test_devices() -> None:
    found = pg.devices()
    assert [device.kind for device in found].count("cpu") >= 1
    assert all(device.memory_total >= device.memory_free >= 0 for device in found)


@pytest.mark.skipif(bool(GPUS), reason="a GPU is present")
def test_a_gpu_asked_for_and_absent_raises(nano_f16: Path) -> None:
    with pytest.raises(pg.DeviceError, match="there is none"):
        pg.Model(nano_f16, n_gpu_layers=2)
    with pytest.raises(pg.DeviceError, match="CUDA7"):
        pg.Model(nano_f16, devices=["CUDA7"])


def test_wrong_settings(nano_f16: Path) -> None:
    for settings in (
        {"n_gpu_layers": -1},
        {"n_gpu_layers": "many"},
        {"n_gpu_layers": True},
        {"devices": "CPU"},
        {"split_mode": "diagonal"},
        {"tensor_split": [1.0, 2.0]},
        {"tensor_overrides": [("(", "CPU")]},
    ):
        with pytest.raises(pg.InputError):
            pg.Model(nano_f16, **settings)  # type: ignore[arg-type]
    with pytest.raises(pg.DeviceError):
        pg.Model(nano_f16, tensor_overrides=[("ffn", "CUDA7")])


def test_tensor_overrides_to_the_cpu_change_nothing(nano_f16: Path) -> None:
    with pg.Model(nano_f16, tensor_overrides=[("ffn_.*", "CPU")]) as model:
        assert set(model.placement.values()) == {"CPU"}


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        pg.Model(tmp_path / "absent.gguf")
    vocabulary = tmp_path / "vocabulary.gguf"
    with pg.GGUFWriter(vocabulary) as writer:
        writer.metadata["general.architecture"] = "phi3"
    with pytest.raises(pg.FormatError, match="no tensors"):
        pg.Model(vocabulary)
    nameless = tmp_path / "nameless.gguf"
    with pg.GGUFWriter(nameless) as writer:
        writer.add_tensor("x", np.zeros(32, np.float32))
    with pytest.raises(pg.FormatError, match="no architecture"):
        pg.Model(nameless)
    incomplete = tmp_path / "incomplete.gguf"
    with pg.GGUFWriter(incomplete) as writer:
        writer.metadata["general.architecture"] = "phi3"
        writer.add_tensor("x", np.zeros(32, np.float32))
    with pytest.raises(pg.FormatError, match="refuses") as caught:
        pg.Model(incomplete)
    assert caught.value.path == str(incomplete)


def test_no_chat_template(tmp_path: Path, nano_f16: Path) -> None:
    bare = tmp_path / "bare.gguf"
    with pg.GGUFFile(nano_f16) as file, pg.GGUFWriter(bare) as writer:
        for key in file.metadata:
            if key != "tokenizer.chat_template":
                writer.metadata[key] = file.metadata[key]
        for tensor in file.tensors.values():
            writer.add_tensor(tensor.name, tensor.dequantize())
    with pg.Model(bare) as model, pytest.raises(pg.UnsupportedError, match="no chat template"):
        model.chat_prompt([{"role": "user", "content": "Hi"}])


def test_more_ends_than_llama_cpp_has_keys_for(nano_f16: Path, tmp_path: Path) -> None:
    """The first token of a greedy answer, named as one more end, ends the answer before it."""
    path = tmp_path / "ends.gguf"
    shutil.copyfile(nano_f16, path)
    greedy = pg.Sampling(temperature=0)
    with pg.Session(path) as session:
        answer = session.generate("The child", max_tokens=3, sampling=greedy)
    ends = np.array(answer.tokens[1:2], np.int32)
    pg.edit_gguf(path, set={"phiggml.tokenizer.end_ids": ends})
    with pg.Session(path) as session:
        shorter = session.generate("The child", max_tokens=3, sampling=greedy)
    assert shorter.tokens == answer.tokens[:1] and shorter.finish_reason == "stop"
