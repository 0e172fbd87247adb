"""LoRA adapters: each change equals what PEFT itself merged, and what does not fit is named."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGUFReader

import phiggml as pg
from checkpoint_kinds import EXPERTS_RENAMED, RENAMED
from checkpoints import read_weights, safetensors_bytes
from phiggml.conversion.lora import convert_lora, plan_lora

DATA = Path(__file__).resolve().parent / "data"
CASES = ("phi3", "phi3_rslora", "phi2", "phimoe", "phimoe_experts")
Array = npt.NDArray[np.float32]

# Names in the base and in a GGUF file; an expert's matrices go by theirs alone.
NAMES = {**RENAMED, **EXPERTS_RENAMED}


def place(source: str) -> tuple[str, int | None]:
    """The tensor of the GGUF file that a weight of the base goes to, and which expert of it."""
    stem = source.removesuffix(".weight")
    layer = re.match(r"model\.layers\.(\d+)\.", stem)
    rest = stem if layer is None else stem[layer.end() :]
    expert = re.fullmatch(r"block_sparse_moe\.experts\.(\d+)\.(w[123])", rest)
    name = NAMES[rest if expert is None else expert[2]]
    target = f"{name}.weight" if layer is None else f"blk.{layer[1]}.{name}.weight"
    return target, None if expert is None else int(expert[1])


def expected(case: str) -> dict[str, dict[int | None, Array]]:
    """What PEFT merged: tensor -> expert (None: no experts) -> change."""
    found: dict[str, dict[int | None, Array]] = {}
    with np.load(DATA / f"lora_{case}.npz") as deltas:
        for source, delta in deltas.items():
            target, expert = place(source)
            found.setdefault(target, {})[expert] = delta
    return found


def applied(path: Path) -> dict[str, Array]:
    """What llama.cpp adds to each tensor: alpha / rank * B @ A, an embedding's turned."""
    reader = GGUFReader(path)
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    # The reader gives data in numpy's order.
    data = {tensor.name: np.array(tensor.data, np.float64) for tensor in reader.tensors}
    changes = {}
    for name in data:
        if name.endswith(".lora_a"):
            target = name.removesuffix(".lora_a")
            a, b = data[name], data[f"{target}.lora_b"]
            product = a @ b.T if target == "token_embd.weight" else b @ a
            changes[target] = product * alpha / b.shape[-1]
    assert 2 * len(changes) == len(data)
    return changes


@pytest.mark.parametrize("case", CASES)
def test_changes_are_those_that_peft_merges(case: str, tmp_path: Path) -> None:
    folder = DATA / f"lora_{case}"
    report = convert_lora(folder, tmp_path / "a.gguf", "F32", base=folder)
    found = applied(tmp_path / "a.gguf")
    wanted = expected(case)
    assert found.keys() == wanted.keys()
    for target, deltas in wanted.items():
        for expert, delta in deltas.items():
            got = found[target] if expert is None else found[target][expert]
            # PEFT's own product is rounded to float32, as are alpha and a B that was scaled.
            assert np.abs(got - delta).max() <= 1e-6 * np.abs(delta).max(), (target, expert)
        untouched = set(range(len(found[target]))) - set(deltas)
        if None not in deltas:
            assert all(not found[target][expert].any() for expert in untouched)
    assert report.nbytes == (tmp_path / "a.gguf").stat().st_size
    assert [t.name for t in report.tensors] == [t.name for t in GGUFReader(report.path).tensors]


@pytest.mark.parametrize(("type", "bound"), [("F16", 2**-10), ("bf16", 2**-7)])
def test_narrow_types(type: str, bound: float, tmp_path: Path) -> None:
    folder = DATA / "lora_phimoe"
    wide = convert_lora(folder, tmp_path / "wide.gguf", "F32", base=folder)
    narrow = convert_lora(folder, tmp_path / "narrow.gguf", type, base=folder)
    with pg.GGUFFile(wide.path) as first, pg.GGUFFile(narrow.path) as second:
        for name, tensor in first.tensors.items():
            router = "ffn_gate_inp" in name
            assert second.tensors[name].type == ("F32" if router else type.upper())
            values, rounded = tensor.dequantize(), second.tensors[name].dequantize()
            assert np.abs(rounded - values).max() <= bound * np.abs(values).max()


def test_metadata_is_that_of_llama_cpp(tmp_path: Path) -> None:
    folder = tmp_path / "Phi-3-poet-lora"
    shutil.copytree(DATA / "lora_phi3_rslora", folder)
    card = "---\nbase_model: microsoft/Phi-3-mini-4k-instruct\nlicense: mit\ntags: [lora]\n---\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    change_config(folder, base_model_name_or_path=None)
    convert_lora(folder, tmp_path / "a.gguf", base=folder)
    with pg.GGUFFile(tmp_path / "a.gguf") as file:
        # The alpha that is divided by the rank is divided by its root here.
        alpha = float(np.float32(16 * math.sqrt(8)))
        assert {k: list(v) if k.endswith("tags") else v for k, v in file.metadata.items()} == {
            "general.architecture": "phi3",
            "general.type": "adapter",
            "adapter.type": "lora",
            "general.name": "Phi 3 Poet Lora",
            "general.license": "mit",
            "general.tags": ["lora"],
            "general.base_model.count": 1,
            "general.base_model.0.name": "Phi 3 Mini 4k Instruct",
            "general.base_model.0.organization": "Microsoft",
            "general.base_model.0.repo_url": (
                "https://huggingface.co/microsoft/Phi-3-mini-4k-instruct"
            ),
            "adapter.lora.alpha": alpha,
            "general.quantization_version": 2,
        }


def test_one_scale_leaves_the_numbers_alone(tmp_path: Path) -> None:
    folder = DATA / "lora_phi3_rslora"
    stored = read_weights(folder)
    convert_lora(folder, tmp_path / "a.gguf", "BF16", base=folder)
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "a.gguf").tensors}
    for which in ("A", "B"):
        name = f"base_model.model.model.layers.1.self_attn.qkv_proj.lora_{which}.weight"
        found = tensors[f"blk.1.attn_qkv.weight.lora_{which.lower()}"].data.tobytes()
        assert found == stored[name][2]


def test_plan_and_dry_run(tmp_path: Path) -> None:
    folder = DATA / "lora_phimoe_experts"
    shown = str(plan_lora(folder, base=folder))
    assert "phimoe: LoRA of 10 tensors" in shown
    assert re.search(
        r"blk\.0\.ffn_gate_exps\.weight +3 x 24 x 16 rank 5 .*\(2 of 3 experts\)", shown
    )
    assert "4 matrices of experts without LoRA become zeros" in shown
    report = convert_lora(folder, tmp_path / "a.gguf", base=folder, dry_run=True)
    assert not report.written and not (tmp_path / "a.gguf").exists()
    assert convert_lora(folder, tmp_path / "a.gguf", base=folder).nbytes == report.nbytes
    assert "blk.1.ffn_up_exps.weight.lora_b" in str(report)


def test_base_is_the_folder_that_the_adapter_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(tmp_path)
    (tmp_path / "bases").mkdir()
    (folder / "config.json").rename(tmp_path / "bases" / "config.json")
    with pytest.raises(pg.InputError, match=r"names 'microsoft/a-tiny-one' .*--base"):
        plan_lora(folder)
    monkeypatch.chdir(tmp_path)
    change_config(folder, base_model_name_or_path="bases")
    assert plan_lora(folder).base == Path("bases")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        plan_lora(folder, base="nowhere")


def test_names_with_an_adapter_and_without_the_prefix(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    rename(folder, lambda name: name.removeprefix("base_model.model."))
    rename(folder, lambda name: name.replace(".weight", ".poet.weight"))
    assert len(plan_lora(folder, base=folder).pairs) == 4


def test_overwrite_and_the_adapter_itself(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    out = tmp_path / "a.gguf"
    out.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        convert_lora(folder, out, base=folder)
    assert out.read_bytes() == b"mine"
    convert_lora(folder, out, base=folder, overwrite=True)
    for name in ("adapter_model.safetensors", "adapter_config.json", "config.json"):
        with pytest.raises(pg.InputError, match="adapter itself"):
            convert_lora(folder, folder / name, base=folder, overwrite=True)
    with pytest.raises(pg.InputError, match=r"Q4_K.*F32, F16, BF16"):
        convert_lora(folder, out, "Q4_K", base=folder)


def test_pickles_are_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(pg.UnsupportedError, match="pickle can run code"):
        plan_lora(folder, base=folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(pg.FormatError, match=r"holds no adapter_model\.safetensors"):
        plan_lora(folder, base=folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(pg.FormatError, match=r"holds no adapter_config\.json"):
        plan_lora(folder, base=folder)
    with pytest.raises(FileNotFoundError):
        plan_lora(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "'LOHA'"),
        ({"use_dora": True}, "DoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"bias": "lora_only"}, "biases were trained"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "single tokens"),
        ({"layer_replication": [[0, 2]]}, "repeats layers"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
    ],
)
def test_what_is_no_plain_lora(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    change_config(folder, **changes)
    with pytest.raises(pg.UnsupportedError, match=message) as error:
        plan_lora(folder, base=folder)
    assert "merge_and_unload" in str(error.value)
    assert "adapter_config.json" in str(error.value)


def test_weights_trained_as_a_whole(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    norm = ("F32", (16,), bytes(64))
    add(folder, "base_model.model.model.layers.0.input_layernorm.weight", norm)
    with pytest.raises(pg.UnsupportedError, match=r"input_layernorm.*trained as a whole.*Merge"):
        plan_lora(folder, base=folder)


def test_embeddings_of_another_size(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    larger = ("F32", (48, 16), bytes(48 * 64))
    add(folder, "base_model.model.model.embed_tokens.base_layer.weight", larger)
    with pytest.raises(pg.UnsupportedError, match=r"embed_tokens.*of another size than the base"):
        plan_lora(folder, base=folder)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_shared_embeddings(module: str, tmp_path: Path) -> None:
    folder = copied(tmp_path, "phi3")
    rename(folder, lambda name: name if module in name else None)
    change_base(folder, tie_word_embeddings=True)
    with pytest.raises(pg.UnsupportedError, match=rf"{module}.*tie_word_embeddings"):
        plan_lora(folder, base=folder)


def test_several_adapters_in_one_file(tmp_path: Path) -> None:
    folder = copied(tmp_path)

    def named(name: str) -> str:
        adapter = "vision" if "layers.0" in name else "speech"
        return name.replace(".weight", f".{adapter}.weight")

    rename(folder, named)
    with pytest.raises(pg.UnsupportedError, match=r"several adapters \('speech', 'vision'\)"):
        plan_lora(folder, base=folder)


def test_unknown_base(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    change_base(folder, architectures=["LlamaForCausalLM"])
    with pytest.raises(pg.UnsupportedError, match="LlamaForCausalLM"):
        plan_lora(folder, base=folder)


def copied(tmp_path: Path, case: str = "phi3_rslora") -> Path:
    return Path(shutil.copytree(DATA / f"lora_{case}", tmp_path / case))


def change_config(folder: Path, **changes: Any) -> None:
    _change(folder / "adapter_config.json", changes)


def change_base(folder: Path, **changes: Any) -> None:
    _change(folder / "config.json", changes)


def _change(path: Path, changes: dict[str, Any]) -> None:
    fields = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps(fields), encoding="utf-8")


def rename(folder: Path, renamed: Callable[[str], str | None]) -> None:
    path = folder / "adapter_model.safetensors"
    stored = read_weights(folder)
    kept = {new: tensor for name, tensor in stored.items() if (new := renamed(name)) is not None}
    path.write_bytes(safetensors_bytes(kept))


def add(folder: Path, name: str, tensor: tuple[str, tuple[int, ...], bytes]) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(safetensors_bytes({**read_weights(folder), name: tensor}))
