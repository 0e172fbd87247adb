"""LoRA adapters: logits are those of the model that the adapter is merged into."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
from adapter_files import (
    EMBEDDING,
    Pairs,
    lora_metadata,
    lora_tensors,
    merged,
    random_pairs,
    write_gguf,
    write_lora,
)
from checkpoints import Stored, safetensors_bytes
from logits_reference import BOUND_F32, DATA, NANO, Logits, exact_session, nrmse
from small_models import small_model

# Merged weights are rounded to float32, and products add in another order.
BOUND = BOUND_F32
DIFFERENT = 0.1
# Activations are quantized to 8 bits before each product, and small differences with them.
BOUND_NARROW = 2e-2

# All of them untied, so that each matrix can be changed.
FOLDERS = ("phi3-mini-tiny", "phi3.5-mini-tiny", "phi2-tiny", "phimoe-tiny")


@dataclass
class Case:
    """A model, and two adapters of all its matrices."""

    path: Path
    architecture: str
    model: pg.Model
    pairs: tuple[Pairs, Pairs]
    tokens: npt.NDArray[np.int32]

    def adapter(self, number: int = 0) -> pg.LoraAdapter:
        path = self.path.with_name(f"lora-{number}.gguf")
        if not path.exists():
            write_lora(path, self.architecture, self.pairs[number])
        return pg.LoraAdapter(self.model, path)

    def merged(self, *scales: float) -> Logits:
        """Of the model into which the adapters are merged with these scales."""
        path = self.path.with_name("merged-{}.gguf".format("-".join(map(str, scales))))
        if not path.exists():
            changes = [(p, 3 * s) for p, s in zip(self.pairs, scales, strict=False)]
            merged(self.path, path, changes)
        with pg.Model(path) as model, exact_session(model) as session:
            return session.eval(self.tokens, logits="all")


@pytest.fixture(scope="module", params=FOLDERS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    path = tmp_path_factory.mktemp("adapter") / "model.gguf"
    pg.convert(DATA / request.param, path, "F32")
    model = pg.Model(path)
    pairs = random_pairs(path, seed=1), random_pairs(path, seed=2)
    assert EMBEDDING in pairs[0] and "output.weight" in pairs[0]
    tokens = np.random.default_rng(3).integers(3, model.n_vocab, 20).astype(np.int32)
    return Case(path, model.metadata["general.architecture"], model, pairs, tokens)


@pytest.fixture
def session(case: Case) -> Iterator[pg.Session]:
    with exact_session(case.model) as session:
        yield session


def test_logits_are_those_of_merged_weights(case: Case, session: pg.Session) -> None:
    plain = session.eval(case.tokens, logits="all")
    with case.adapter() as adapter:
        assert adapter.alpha == 3 and adapter.rank == 5
        assert adapter.n_tensors == len(case.pairs[0])
        session.set_lora([adapter])
    session.reset()
    found = session.eval(case.tokens, logits="all")
    assert nrmse(found, plain) >= DIFFERENT
    assert nrmse(found, case.merged(1.0)) <= BOUND


def test_two_adapters_add_up(case: Case, session: pg.Session) -> None:
    session.set_lora([(case.adapter(0), 0.5), (case.adapter(1), -0.25)])
    found = session.eval(case.tokens, logits="all")
    assert nrmse(found, case.merged(0.5, -0.25)) <= BOUND


def test_scale_zero_is_no_adapter(case: Case, session: pg.Session) -> None:
    plain = session.eval(case.tokens, logits="all")
    session.set_lora([(case.adapter(), 0)])
    session.reset()
    assert np.array_equal(session.eval(case.tokens, logits="all"), plain)


def test_what_is_in_the_context_is_evaluated_again(case: Case) -> None:
    """Set, changed and taken back in the middle of texts: as in a session that had it always."""
    fresh = {}
    for scale in (0.0, 1.0, -0.5):
        with exact_session(case.model) as session:
            session.set_lora([(case.adapter(), scale)])
            fresh[scale] = session.eval(case.tokens[:12]), session.eval(case.tokens[12:])
    with exact_session(case.model, n_seq_max=2) as session:
        session.eval(case.tokens[:5])
        session.eval(case.tokens[:11], sequence=1)
        for scale in (1.0, -0.5, 0.0, 1.0):
            session.set_lora([(case.adapter(), scale)] if scale else [])
            for sequence in (0, 1):
                kept = session.sequence_tokens(sequence)
                assert np.array_equal(kept, case.tokens[: len(kept)])
                last = session.eval(case.tokens[len(kept) : 12], sequence=sequence)
                assert nrmse(last, fresh[scale][0]) <= BOUND
                rest = session.eval(case.tokens[12:], sequence=sequence)
                assert nrmse(rest, fresh[scale][1]) <= BOUND
                session.reset(sequence=sequence)
                session.eval(case.tokens[: 5 + sequence], sequence=sequence)


@pytest.mark.parametrize("type", ["F16", "BF16", "Q8_0"])
def test_narrow_types(nano_f32: Path, nano_q4: Path, type: str, tmp_path: Path) -> None:
    """Of A and B, on a quantized model; against the same adapter of float32."""
    names = ("blk.0.attn_qkv.weight", "blk.1.ffn_down.weight")
    with pg.GGUFFile(nano_f32) as file:
        random = np.random.default_rng(1)
        shapes = {name: file.tensors[name].shape for name in names}
        pairs: Pairs = {
            name: (
                random.normal(0, 0.4, (32, n_in)).astype(np.float32),
                random.normal(0, 0.4, (n_out, 32)).astype(np.float32),
            )
            for name, (n_out, n_in) in shapes.items()
        }
    wide = write_lora(tmp_path / "wide.gguf", "phi3", pairs)
    narrow = write_gguf(tmp_path / "narrow.gguf", lora_metadata("phi3"), lora_tensors(pairs), type)
    with pg.Model(nano_q4) as model, exact_session(model) as session:
        rows = [session.eval(range(9), logits="all")]
        for path in (wide, narrow):
            session.set_lora([(pg.LoraAdapter(model, path), 0.5)])
            session.reset()
            rows.append(session.eval(range(9), logits="all"))
        assert nrmse(rows[1], rows[0]) >= DIFFERENT
        assert nrmse(rows[2], rows[1]) <= BOUND_NARROW


def test_an_upstream_graph(tmp_path: Path) -> None:
    """A model of an architecture that is not ours, and one of its adapters for experts."""
    for name in ("llama", "llama-moe"):
        model_path = small_model(name).write(tmp_path / f"{name}.gguf")
        pairs = random_pairs(model_path)
        whole = merged(model_path, tmp_path / "merged.gguf", [(pairs, 3.0)])
        plain = merged(model_path, tmp_path / "plain.gguf", [])
        rows = []
        for path, adapters in ((whole, []), (plain, [pairs])):
            with pg.Model(path) as model, exact_session(model) as session:
                files = [write_lora(tmp_path / "lora.gguf", "llama", p) for p in adapters]
                session.set_lora([pg.LoraAdapter(model, file) for file in files])
                rows.append(session.eval(range(3, 20), logits="all"))
        (tmp_path / "merged.gguf").unlink()
        (tmp_path / "plain.gguf").unlink()
        assert nrmse(rows[1], rows[0]) <= BOUND


def test_what_convert_lora_writes(nano_f32: Path, tmp_path: Path) -> None:
    """PEFT's matrices of a fused projection and of the head, converted."""
    random = np.random.default_rng(5)
    alpha, rank, n_embd = 6, 4, 256
    modules = {
        "model.layers.0.self_attn.qkv_proj": "blk.0.attn_qkv.weight",
        "model.layers.1.mlp.gate_up_proj": "blk.1.ffn_up.weight",
        "lm_head": "output.weight",
    }
    stored: dict[str, Stored] = {}
    pairs: dict[str, tuple[Any, Any]] = {}
    with pg.GGUFFile(nano_f32) as file:
        for module, name in modules.items():
            parts = []
            for part, shape in (("A", (rank, n_embd)), ("B", (file.tensors[name].shape[0], rank))):
                values = random.normal(0, 0.3, shape).astype(np.float32)
                key = f"base_model.model.{module}.lora_{part}.weight"
                stored[key] = ("F32", shape, values.tobytes())
                parts.append(values)
            pairs[name] = (parts[0], parts[1])
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors_bytes(stored))
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": list(modules)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    pg.convert_lora(tmp_path, tmp_path / "lora.gguf", "F32", base=NANO)
    whole = merged(nano_f32, tmp_path / "merged.gguf", [(pairs, alpha)])
    tokens = random.integers(3, 2000, 20)
    with pg.Model(whole) as model, exact_session(model) as session:
        wanted = session.eval(tokens, logits="all")
    with pg.Model(nano_f32) as model, exact_session(model) as session:
        session.set_lora([pg.LoraAdapter(model, tmp_path / "lora.gguf")])
        assert nrmse(session.eval(tokens, logits="all"), wanted) <= BOUND


def test_lifetimes(nano_f16: Path, tmp_path: Path) -> None:
    """Closed in any order, an adapter lives as long as a session that uses it."""
    path = write_lora(tmp_path / "a.gguf", "phi3", random_pairs(nano_f16, ["output.weight"]))
    model = pg.Model(nano_f16)
    session = pg.Session(model, n_ctx=64)
    adapter = pg.LoraAdapter(model, path)
    session.set_lora([adapter])
    first = session.eval([5, 6, 7])
    adapter.close()
    adapter.close()
    model.close()
    path.unlink()
    assert "closed" in repr(adapter) and adapter.rank >= 1
    with pytest.raises(pg.SessionError, match="it is closed"):
        session.set_lora([adapter])
    session.reset()
    assert np.array_equal(session.eval([5, 6, 7]), first)
    session.close()
    with pytest.raises(pg.SessionError, match="closed"):
        session.set_lora([])
    with pytest.raises(pg.SessionError, match="closed"):
        pg.LoraAdapter(model, path)
    del model, session, adapter
    gc.collect()


def test_arguments(nano_f16: Path, nano_model: pg.Model, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.gguf", "phi3", random_pairs(nano_f16, ["output.weight"]))
    adapter = pg.LoraAdapter(nano_model, path)
    with pg.Model(nano_f16) as other, pg.Session(nano_model, n_ctx=64) as session:
        stranger = pg.LoraAdapter(other, path)
        before = session.eval([5, 6])
        for adapters, message in (
            ([stranger], "another Model"),
            ([adapter, (adapter, 2.0)], "given twice"),
            ([(adapter, float("nan"))], "must be a finite number"),
            ([(adapter, 1e39)], "must be a finite number"),
            ([(adapter, 10**400)], "must be a finite number"),
            ([(adapter, "1")], "must be a finite number"),
            ([(adapter, True)], "must be a finite number"),
            ([path], "neither a LoraAdapter"),
            ([(adapter, 1.0, 2.0)], "neither a LoraAdapter"),
            (adapter, "must be a sequence"),
        ):
            with pytest.raises(pg.InputError, match=message):
                session.set_lora(adapters)  # type: ignore[arg-type]
        assert session.tokens.tolist() == [5, 6]
        session.reset()
        assert np.array_equal(session.eval([5, 6]), before)
    with pytest.raises(pg.InputError, match="must be a Model"):
        pg.LoraAdapter(str(nano_f16), path)  # type: ignore[arg-type]


def test_loaded_while_others_run(nano_f16: Path, nano_model: pg.Model, tmp_path: Path) -> None:
    """llama.cpp keeps one list of a model's adapters, which new graphs read."""
    path = write_lora(tmp_path / "a.gguf", "phi3", random_pairs(nano_f16, ["output.weight"]))
    failures: list[BaseException] = []

    def load() -> None:
        try:
            for _ in range(30):
                pg.LoraAdapter(nano_model, path).close()
        except pg.PhiggmlError as failure:
            failures.append(failure)

    thread = threading.Thread(target=load)
    thread.start()
    adapter = pg.LoraAdapter(nano_model, path)
    for scale in range(1, 9):
        with pg.Session(nano_model, n_ctx=32) as session:
            session.eval([5])
            session.set_lora([(adapter, scale)])
            session.eval([6])
    thread.join()
    assert not failures


def test_says_what_it_is(nano_f16: Path, nano_model: pg.Model, tmp_path: Path) -> None:
    pairs = random_pairs(nano_f16, ["output.weight", "blk.1.ffn_up.weight"])
    path = write_lora(tmp_path / "a.gguf", "phi3", pairs, alpha=16)
    adapter = pg.LoraAdapter(nano_model, path)
    assert adapter.ranks == {name: b.shape[1] for name, (_, b) in pairs.items()}
    assert repr(adapter) == (
        f"<LoraAdapter {str(path)!r}, 2 tensors, rank {max(adapter.ranks.values())}, alpha 16>"
    )
    assert adapter.metadata["adapter.type"] == "lora"
