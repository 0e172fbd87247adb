"""GGUF to checkpoint: the way there and back, values, files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import checkpoints
import phiggml as pg
from checkpoints import FACTORS
from exports import DATA, KINDS, NANO, changed, entries, json_of, read_tensors
from test_conversion import renamed

TYPES = ("F32", "F16", "BF16")
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A GGUF file of the seeded checkpoint, F32."""
    checkpoints.write_checkpoint(tmp_path / "tiny")
    pg.convert(tmp_path / "tiny", tmp_path / "tiny.gguf", "F32")
    return tmp_path / "tiny.gguf"


def back_and_forth(checkpoint: Path, folder: Path, kind: str = "F32") -> tuple[bytes, bytes]:
    """The bytes of a converted checkpoint, and of the same exported and converted again."""
    first, again = folder / "first.gguf", folder / "again.gguf"
    pg.convert(checkpoint, first, kind)
    # A name that says something else about version, size and tuning than the first folder's.
    exported = folder / "other-7B-chat-v9"
    pg.export_checkpoint(first, exported)
    pg.convert(exported, again, kind)
    return first.read_bytes(), again.read_bytes()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", [*KINDS, "phi3-nano"])
def test_a_checkpoint_comes_back_byte_for_byte(name: str, kind: str, tmp_path: Path) -> None:
    first, again = back_and_forth(NANO if name == NANO.name else DATA / name, tmp_path, kind)
    assert first == again


LONG = {"short_factor": list(FACTORS), "long_factor": [8 * f for f in FACTORS]}
HALF = {"short_factor": list(FACTORS[:3]), "long_factor": list(FACTORS[:3])}
CONFIGS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "no window": {"sliding_window": None},
    "long rope": {"rope_scaling": {"type": "su", **LONG}, "max_position_embeddings": 131072},
    "a stated factor": {"rope_scaling": {"type": "longrope", **LONG, "factor": 64}},
    "an attention factor": {"rope_scaling": {"type": "longrope", **LONG, "attention_factor": 1.3}},
    "partial rotary": {"partial_rotary_factor": 0.75},
    "both": {"partial_rotary_factor": 0.75, "rope_scaling": {"type": "longrope", **HALF}},
    "another original": {"original_max_position_embeddings": 2048},
    "numbers": {"rope_theta": 123456.7, "rms_norm_eps": 1e-6},
    "an id": {"_name_or_path": "microsoft/Phi-3.5-mini-instruct"},
    "rows without a token": {"pad_token_id": checkpoints.ROWS - 1},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_comes_back(name: str, tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path / "phi-3-mini", changes=CONFIGS[name])
    if "pad_token_id" in CONFIGS[name]:
        checkpoints.write_tokenizer(tmp_path / "phi-3-mini", pad_token=...)
    first, again = back_and_forth(tmp_path / "phi-3-mini", tmp_path)
    assert first == again


def test_card_and_sampling_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "Phi-3-mini-4k-instruct"
    checkpoints.write_checkpoint(folder)
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: \"a: 'b'\"\nlicense_link: https://example.org/L#1\n"
        "language:\n- no\n- en\ntags: [nlp, '1']\npipeline_tag: text-generation\n---\nText.\n"
    )
    sampling = {"temperature": 0.3, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.05}
    checkpoints.write_json(folder / "generation_config.json", {**sampling, "eos_token_id": 2})
    first, again = back_and_forth(folder, tmp_path)
    assert first == again
    found = json_of(tmp_path / "other-7B-chat-v9" / "generation_config.json")
    assert {name: found[name] for name in sampling} == sampling
    assert found["do_sample"] is True


@pytest.mark.parametrize("name", KINDS)
def test_config_and_companions_are_the_originals(name: str, tmp_path: Path) -> None:
    pg.convert(DATA / name, tmp_path / "a.gguf", "F32")
    pg.export_checkpoint(tmp_path / "a.gguf", tmp_path / "out")
    # The layout of 2024, whatever the original's.
    source = DATA / name / ("config.json" if "3.5" not in name else "config.rope_scaling.json")
    original, exported = json_of(source), json_of(tmp_path / "out" / "config.json")
    assert exported == {k: v for k, v in original.items() if k in exported} | {
        "torch_dtype": "float32"
    }
    lost = {"attention_dropout", "embd_pdrop", "resid_pdrop", "initializer_range"}
    assert original.keys() - exported.keys() == lost
    for file in ("added_tokens.json", "special_tokens_map.json"):
        assert json_of(tmp_path / "out" / file) == json_of(DATA / name / file)
    original = json_of(DATA / name / "tokenizer_config.json")
    exported = json_of(tmp_path / "out" / "tokenizer_config.json")
    lost = {"padding_side", "sp_model_kwargs", "use_default_system_prompt"}
    assert exported == {k: v for k, v in original.items() if k not in lost}
    ends = [
        set(json_of(folder / "generation_config.json")["eos_token_id"])
        for folder in (DATA / name, tmp_path / "out")
    ]
    assert ends[0] == ends[1] and len(ends[0]) == 3


@pytest.mark.parametrize("dtype", TYPES)
def test_values_are_rounded_to_nearest_even(dtype: str, tmp_path: Path) -> None:
    values = checkpoints.write_checkpoint(tmp_path / "m")
    # Halfway cases of both formats, their neighbours, the least subnormals, and signed zeros.
    bits = [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x3F801000, 0x3F803000, 0x33800000,
            0x33000000, 0x33000001, 0x00000001, 0x80000000, 0x477FE000]  # fmt: skip
    edge = np.array(bits, np.uint32).view(np.float32)
    name = "model.layers.1.mlp.down_proj.weight"
    values[name].flat[: edge.size] = edge
    tensors = checkpoints.read_weights(tmp_path / "m")
    tensors[name] = ("F32", values[name].shape, values[name].tobytes())
    checkpoints.write_weights(tmp_path / "m", tensors)
    pg.convert(tmp_path / "m", tmp_path / "a.gguf", "F32")
    report = pg.export_checkpoint(tmp_path / "a.gguf", tmp_path / "out", dtype=dtype.lower())
    found = read_tensors(tmp_path / "out")
    assert found.keys() == values.keys()
    for name, expected in values.items():
        # Random norms are beyond the half formats, and are not rounded.
        kept = np.float32 if expected.ndim == 1 else DTYPES[dtype]
        assert found[name].dtype == kept, name
        assert found[name].tobytes() == expected.astype(kept).tobytes(), name
    assert json_of(tmp_path / "out" / "config.json")["torch_dtype"] == {
        "F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]  # fmt: skip
    assert any("norms stay F32" in note for note in report.notes) is (dtype != "F32")
    assert any("rounded" in note for note in report.notes) is (dtype != "F32")


@pytest.mark.parametrize("dtype", [None, "F16", "F32"])
def test_quantized_weights_are_what_the_gguf_package_makes_of_them(
    dtype: str | None, nano_q4: Path, tmp_path: Path
) -> None:
    report = pg.export_checkpoint(nano_q4, tmp_path / "out", dtype=dtype)
    assert report.plan.dtype == (dtype or "BF16")
    found = read_tensors(tmp_path / "out")
    source = {tensor.name: tensor for tensor in gguf.GGUFReader(nano_q4).tensors}
    assert {renamed(name) for name in found} == source.keys()
    for name, array in found.items():
        tensor = source[renamed(name)]
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        expected = numbers.astype(DTYPES[dtype or "BF16"]).reshape(array.shape)
        assert array.tobytes() == expected.tobytes(), name
    assert any("Q4_K, Q6_K" in note for note in report.notes)


@pytest.mark.parametrize("kind", TYPES)
def test_the_dtype_is_the_weights_own_if_there_is_one(kind: str, tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path / "m", dtype=kind)
    pg.convert(tmp_path / "m", tmp_path / "a.gguf", kind)
    report = pg.export_checkpoint(tmp_path / "a.gguf", tmp_path / "out")
    assert report.plan.dtype == kind
    stored = checkpoints.read_weights(tmp_path / "m")
    for name, array in read_tensors(tmp_path / "out").items():
        assert array.tobytes() == stored[name][2], name


def test_shards_are_filled_in_order_and_named_in_an_index(tiny: Path, tmp_path: Path) -> None:
    limit = 40_000
    report = pg.export_checkpoint(tiny, tmp_path / "out", max_shard_bytes=limit)
    whole = pg.export_checkpoint(tiny, tmp_path / "whole")
    shards = sorted(path.name for path in (tmp_path / "out").glob("model-*"))
    n = len(shards)
    assert shards == [f"model-{i:05}-of-{n:05}.safetensors" for i in range(1, n + 1)] and n > 2
    index = json_of(tmp_path / "out" / "model.safetensors.index.json")
    assert index["metadata"] == {"total_size": sum(t.nbytes for t in report.tensors)}
    held = {file: entries(tmp_path / "out" / file)[0] for file in shards}
    assert index["weight_map"] == {name: file for file in shards for name in held[file]}
    sizes = [
        sum(np.subtract(*reversed(e["data_offsets"])) for e in h.values()) for h in held.values()
    ]
    for i, size in enumerate(sizes):
        assert size <= limit or len(held[shards[i]]) == 1
        if i:
            first = next(iter(held[shards[i]].values()))["data_offsets"][1]
            assert sizes[i - 1] + first > limit, "no room was left"
    one, many = read_tensors(tmp_path / "whole"), read_tensors(tmp_path / "out")
    assert one.keys() == many.keys() and all(np.array_equal(one[k], many[k]) for k in one)
    assert "model.safetensors.index.json" not in whole.files
    for folder, written in ((tmp_path / "out", report), (tmp_path / "whole", whole)):
        assert written.files == {p.name: p.stat().st_size for p in folder.iterdir()}


def test_a_dry_run_says_what_would_be_written(tiny: Path, tmp_path: Path) -> None:
    dry = pg.export_checkpoint(tiny, tmp_path / "out", max_shard_bytes=40_000, dry_run=True)
    assert not (tmp_path / "out").exists()
    written = pg.export_checkpoint(tiny, tmp_path / "out", max_shard_bytes=40_000)
    assert (dry.files, dry.tensors, dry.nbytes) == (written.files, written.tensors, written.nbytes)
    assert (dry.written, written.written) == (False, True)
    for text in ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight", "dry run"):
        assert text in str(dry)


def test_any_part_of_a_split_model_is_the_model(tiny: Path, tmp_path: Path) -> None:
    with pg.GGUFFile(tiny) as file:
        writer = pg.GGUFWriter(tmp_path / "part.gguf", split_max_tensors=6)
        with writer:
            writer.copy_metadata(file.metadata)
            for tensor in file.tensors.values():
                writer.add_tensor(tensor.name, tensor.data, tensor.type)
    assert len(writer.paths) > 2
    for out, source in (("whole", tiny), ("parts", writer.paths[1])):
        pg.export_checkpoint(source, tmp_path / out)
    for path in (tmp_path / "whole").iterdir():
        if path.name != "README.md":
            assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()


def test_what_a_checkpoint_has_no_words_for_is_listed(tiny: Path, tmp_path: Path) -> None:
    more = {
        "general.author": "me",
        "quantize.imatrix.file": "x.dat",
        "general.license": "with\nlines",
        "split.count": pg.GGUFValue(0, "UINT16"),
    }
    report = pg.export_checkpoint(changed(tiny, tmp_path / "b.gguf", more), tmp_path / "out")
    (note,) = (note for note in report.notes if note.startswith("No place"))
    assert note == (
        "No place in a checkpoint: general.author, general.license, quantize.imatrix.file."
    )


def test_a_file_of_another_converter(tiny: Path, tmp_path: Path) -> None:
    """Keys that are absent mean what llama.cpp and the first converters meant by it."""
    without = {
        "phi3.attention.sliding_window",
        "phi3.attention.head_count_kv",
        "phi3.rope.dimension_count",
        "phi3.rope.freq_base",
        "phi3.rope.scaling.original_context_length",
        "tokenizer.ggml.padding_token_id",
        "tokenizer.ggml.pre",
        "general.name",
    }
    qkv = np.zeros((96, 32), np.float32)
    qkv_of_all_heads = {f"blk.{i}.attn_qkv.weight": qkv for i in range(2)}
    path = changed(tiny, tmp_path / "b.gguf", without=without, tensors=qkv_of_all_heads)
    pg.export_checkpoint(path, tmp_path / "out")
    config = json_of(tmp_path / "out" / "config.json")
    assert (config["sliding_window"], config["num_key_value_heads"]) == (2047, 4)
    assert (config["rope_theta"], config["pad_token_id"]) == (10000.0, None)
    assert "partial_rotary_factor" not in config
    assert "original_max_position_embeddings" not in config
    added = json_of(tmp_path / "out" / "tokenizer_config.json")["added_tokens_decoder"]
    assert not any(entry["rstrip"] for entry in added.values()), "no name, no stripping"
    longer = {"phi3.context_length": 8192}
    pg.export_checkpoint(changed(path, tmp_path / "c.gguf", longer), tmp_path / "longer")
    assert json_of(tmp_path / "longer" / "config.json")["sliding_window"] is None


def strings(*values: str) -> pg.GGUFValue:
    return pg.GGUFValue(list(values), "STRING")


ONES = np.ones(checkpoints.ROWS, np.float32)
KEY = "tokenizer.ggml."
# Changes to the metadata (None takes the key out), and what the error says.
BAD_METADATA: dict[str, tuple[dict[str, Any], str]] = {
    "no width": ({"phi3.embedding_length": None}, "phi3.embedding_length is missing"),
    "width text": ({"phi3.embedding_length": "32"}, "embedding_length = '32': must be a whole"),
    "heads an array": (
        {"phi3.attention.head_count": np.array([4, 4], np.uint32)},
        "head_count = array",
    ),
    "heads 5": ({"phi3.attention.head_count": 5}, "head_count = 5: does not divide 32"),
    "key heads 3": ({"phi3.attention.head_count_kv": 3}, "head_count_kv = 3: does not divide 4"),
    "layers 513": ({"phi3.block_count": 513}, "block_count = 513: must be .* from 1 to 512"),
    "layers 3": ({"phi3.block_count": 3}, "6 faults.*'blk.2.attn_norm.weight' is missing"),
    "layers 1": ({"phi3.block_count": 1}, "6 faults.*'blk.1.ffn_up.weight' has no place"),
    "width of feed-forward": ({"phi3.feed_forward_length": 40}, "gate_up 80, hidden 32"),
    "epsilon NaN": ({"phi3.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon = nan"),
    "rotary 7": ({"phi3.rope.dimension_count": 7}, "dimension_count = 7: must be even"),
    "rotary 10": ({"phi3.rope.dimension_count": 10}, "must be a whole number from 1 to 8"),
    "key length": ({"phi3.attention.key_length": 16}, "value_length = None: .* keys, 16"),
    "rows": ({"phi3.vocab_size": 300}, "vocab_size = 300: differs from the 288 rows"),
    "no tokenizer": ({KEY + "model": None}, "tokenizer.ggml.model is missing"),
    "no tokens": ({KEY + "tokens": None}, "tokenizer.ggml.tokens is missing"),
    "no scores": ({KEY + "scores": None}, "tokenizer.ggml.scores is missing"),
    "no types": ({KEY + "token_type": None}, "tokenizer.ggml.token_type is missing"),
    "nothing": (
        {KEY + name: None for name in ("tokens", "scores", "token_type")},
        "3 faults.*tokens is missing.*scores is missing.*token_type is missing",
    ),
    "tokens numbers": ({KEY + "tokens": ONES}, "tokens = .*must be an array of strings"),
    "tokens empty": ({KEY + "tokens": strings()}, "must be an array of strings"),
    "tokens text": ({KEY + "tokens": "a"}, "must be an array of strings"),
    "scores integers": ({KEY + "scores": ONES.astype(np.int32)}, "must be an array of fractions"),
    "scores strings": ({KEY + "scores": strings("a")}, "must be an array of fractions"),
    "types fractions": ({KEY + "token_type": ONES}, "must be an array of integers"),
    "types a number": ({KEY + "token_type": 1}, "must be an array of integers"),
    "lengths": (
        {KEY + "scores": ONES[1:], KEY + "token_type": ONES[2:].astype(np.int32)},
        "288 tokens, 287 scores and 286 types",
    ),
    "score NaN": ({KEY + "scores": np.nan * ONES}, r"token 0 \('<unk>'\).* and 283 more has a sc"),
    "type 0": ({KEY + "token_type": 0 * ONES.astype(np.int32)}, "has a type other than 1 to 6"),
    "types unknown": (
        {KEY + "token_type": 2 * ONES.astype(np.int32)},
        "288 tokens are of type 2",
    ),
    "types normal": ({KEY + "token_type": ONES.astype(np.int32)}, "0 tokens are of type 2"),
    "bytes": ({KEY + "token_type": 6 * ONES.astype(np.int32)}, "288 tokens stand for single bytes"),
    "all added": (
        {KEY + "token_type": 3 * ONES.astype(np.int32), KEY + "scores": -1000 * ONES},
        "0 tokens are of type 2",
    ),
    "id beyond": ({KEY + "eos_token_id": 288}, "eos_token_id = 288: must be .* 0 to 287"),
    "eot beyond": ({KEY + "eot_token_id": 288}, "eot_token_id = 288: must be .* 0 to 287"),
    "id text": ({KEY + "bos_token_id": "1"}, "bos_token_id = '1'"),
    "flag": ({KEY + "add_bos_token": 1}, "add_bos_token = 1: must be true or false"),
    "prefix": ({KEY + "add_space_prefix": "no"}, "add_space_prefix = 'no'"),
    "template": ({"tokenizer.chat_template": 7}, "chat_template = 7: must be a string"),
    "template bytes": ({"tokenizer.chat_template": "\udcff"}, "must be a string"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_METADATA)
def test_bad_metadata_are_refused(name: str, tiny: Path, tmp_path: Path) -> None:
    changes, word = BAD_METADATA[name]
    absent = {key for key, value in changes.items() if value is None}
    path = changed(
        tiny,
        tmp_path / "b.gguf",
        {k: v for k, v in changes.items() if v is not None},
        without=absent,
    )
    with pytest.raises(pg.FormatError, match=f"(?s){word}") as caught:
        pg.export_checkpoint(path, tmp_path / "out")
    assert caught.value.path == str(path)
    assert not (tmp_path / "out").exists()


def test_all_faults_are_reported_together(tiny: Path, tmp_path: Path) -> None:
    path = changed(
        tiny,
        tmp_path / "b.gguf",
        {KEY + "bos_token_id": 999},
        without={"output_norm.weight", KEY + "scores"},
        tensors={
            "blk.0.attn_qkv.bias": np.ones(2, np.float32),
            "blk.0.attn_output.weight": np.ones((2, 3), np.float32),
            "blk.1.attn_norm.weight": np.ones(32, np.int32),
        },
    )
    with pytest.raises(pg.FormatError) as caught:
        pg.export_checkpoint(path, tmp_path / "out")
    for fault in (
        "5 faults",
        "'output_norm.weight' is missing",
        "'blk.0.attn_qkv.bias' has no place in Phi3ForCausalLM",
        "'blk.0.attn_output.weight' has shape (2, 3); the metadata say (hidden 32, heads 32)",
        "'blk.1.attn_norm.weight' is stored as I32",
        "tokenizer.ggml.scores is missing",
    ):
        assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (
            {"general.architecture": "llama"},
            "'llama' cannot be exported. These can: 'phi3' .Phi3For",
        ),
        ({"tokenizer.ggml.model": "gpt2"}, "its tokenizer is 'gpt2'; only 'llama'"),
        ({"phi3.rope.scaling.type": "linear"}, "type is 'linear'; .* longrope only"),
    ],
)
def test_what_is_valid_but_not_done(
    changes: dict[str, Any], word: str, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(pg.UnsupportedError, match=word):
        pg.export_checkpoint(changed(tiny, tmp_path / "b.gguf", changes), tmp_path / "out")


FACTOR_TENSORS: dict[str, tuple[dict[str, npt.NDArray[Any]], str]] = {
    "one alone": ({"long": np.ones(4, np.float32)}, "short.weight' must hold 4"),
    "too short": (dict.fromkeys(("long", "short"), np.ones(3, np.float32)), "2 faults.*hold 4"),
    "zero": (dict.fromkeys(("long", "short"), np.zeros(4, np.float32)), "above 0"),
    "NaN": (dict.fromkeys(("long", "short"), np.full(4, np.nan, np.float32)), "finite"),
    "integers": (dict.fromkeys(("long", "short"), np.ones(4, np.int32)), "is I32 of shape"),
    "square": (dict.fromkeys(("long", "short"), np.ones((2, 2), np.float32)), r"shape \(2, 2\)"),
}


@pytest.mark.parametrize("name", FACTOR_TENSORS)
def test_bad_rope_factors_are_refused(name: str, tiny: Path, tmp_path: Path) -> None:
    factors, word = FACTOR_TENSORS[name]
    tensors = {f"rope_factors_{which}.weight": array for which, array in factors.items()}
    with pytest.raises(pg.FormatError, match=f"(?s){word}"):
        path = changed(tiny, tmp_path / "b.gguf", tensors=tensors)
        pg.export_checkpoint(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("value", "dtype", "word"),
    [
        (np.nan, "F32", "NaN or infinity"),
        (np.inf, "BF16", "NaN or infinity"),
        (1e5, "F16", "overflow the range of F16"),
        (3.4e38, "BF16", "overflow the range of BF16"),
    ],
)
def test_weights_beyond_the_dtype_are_refused_and_nothing_is_left(
    value: float, dtype: str, word: str, tiny: Path, tmp_path: Path
) -> None:
    bad = np.full((32, 48), value, np.float32)
    path = changed(tiny, tmp_path / "b.gguf", tensors={"blk.1.ffn_down.weight": bad})
    with pytest.raises(pg.InputError, match=f"blk.1.ffn_down.weight: .*{word}"):
        pg.export_checkpoint(path, tmp_path / "out", dtype=dtype)
    assert not (tmp_path / "out").exists()


def test_a_norm_beyond_the_dtype_stays_as_it_is(tiny: Path, tmp_path: Path) -> None:
    norm = np.full(32, 1e5, np.float32)
    path = changed(tiny, tmp_path / "b.gguf", tensors={"blk.1.ffn_norm.weight": norm})
    pg.export_checkpoint(path, tmp_path / "out", dtype="F16")
    found = read_tensors(tmp_path / "out")["model.layers.1.post_attention_layernorm.weight"]
    assert found.dtype == np.float32 and np.array_equal(found, norm)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"dtype": "F64"}, "dtype 'F64' is none of BF16, F16, F32"),
        ({"dtype": 16}, "dtype 16"),
        ({"max_shard_bytes": 0}, "max_shard_bytes 0"),
        ({"max_shard_bytes": 1e9}, "max_shard_bytes"),
        ({"max_shard_bytes": True}, "max_shard_bytes"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], word: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(pg.InputError, match=word):
        pg.export_checkpoint(tiny, tmp_path / "out", **settings)


def test_no_more_files_than_anybody_wants(tiny: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("phiggml.conversion.export_plan._MOST_SHARDS", 14)
    with pytest.raises(pg.InputError, match="makes 15 files; 14 are enough"):
        pg.export_checkpoint(tiny, tmp_path / "out", max_shard_bytes=1)
