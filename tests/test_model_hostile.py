"""Model files that llama.cpp loads and then dies of, or of the texts they are given."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import hostile_loads
import phiggml as pg
from hostile_endings import endings_of

Change = Callable[[str, npt.NDArray[np.float32]], npt.NDArray[Any]]


def unchanged(name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    return values if values.ndim == 1 else values.astype(np.float16)


def rewritten(
    path: Path, source: Path, metadata: Mapping[str, Any], change: Change = unchanged
) -> Path:
    """A copy of a model with other metadata (a tokenizer, if given, instead of its own)."""
    drop = "tokenizer." if any(key.startswith("tokenizer.") for key in metadata) else "\0"
    with pg.GGUFFile(source) as file, pg.GGUFWriter(path) as writer:
        for key in file.metadata:
            if key not in metadata and not key.startswith(drop):
                writer.metadata[key] = file.metadata[key]
        for key, value in metadata.items():
            writer.metadata[key] = value
        for tensor in file.tensors.values():
            writer.add_tensor(tensor.name, change(tensor.name, tensor.dequantize()))
    return path


def in_child(code: str, *arguments: object) -> str:
    """What code in a child prints; the child must end by itself."""
    script = f"import sys\nimport phiggml as pg\npath = sys.argv[1]\n{code}"
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.strip()


@pytest.fixture(scope="module")
def bpe_model(nano_f16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """phi3-nano with a byte-level vocabulary that llama.cpp splits by std::regex."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    tokens = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    with pg.GGUFFile(nano_f16) as file:
        n_vocab = file.tensors["token_embd.weight"].shape[0]
    tokens += ["aa", *(f"token{i}" for i in range(n_vocab - len(tokens) - 1))]
    return rewritten(
        tmp_path_factory.mktemp("bpe") / "bpe.gguf",
        nano_f16,
        {
            "general.name": "bytes",
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "llama4",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": ["a a"],
            "tokenizer.ggml.token_type": np.ones(n_vocab, np.int32),
            "tokenizer.ggml.bos_token_id": np.uint32(0),
            "tokenizer.ggml.eos_token_id": np.uint32(0),
        },
    )


@pytest.mark.parametrize(
    ("text", "n_tokens"),
    [("a", 50_000), (" ", 100_000), ("\n", 100_000), ("!", 100_000), ("中", 300_000)],
)
def test_long_runs_do_not_overflow_the_stack(bpe_model: Path, text: str, n_tokens: int) -> None:
    # std::regex recurses once per character: 25172 of them ended the process.
    code = (
        f"print(len(pg.Model(path).tokenize({text!r} * 100_000, add_special=False)), end='')\n"
        "import threading\n"
        "def work():\n"
        f"    pg.Model(path).tokenize({text!r} * 100_000)\n"
        "thread = threading.Thread(target=work)\n"
        "thread.start()\n"
        "thread.join()\n"
    )
    assert in_child(code, bpe_model) == str(n_tokens)


def test_longer_runs_are_refused(bpe_model: Path) -> None:
    with pg.Model(bpe_model) as model:
        with pytest.raises(pg.InputError, match="on end"):
            model.tokenize("a" * (2**20 + 1))
        assert len(model.tokenize("ab " * 2**19, add_special=False)) == 3 * 2**19


def test_no_vocabulary(nano_f16: Path, tmp_path: Path) -> None:
    path = rewritten(
        tmp_path / "bare.gguf",
        nano_f16,
        {"tokenizer.ggml.model": "no_vocab", "phi3.vocab_size": np.uint32(2048)},
    )
    code = """
with pg.Session(path, n_ctx=64) as session:
    print(session.eval([5]).shape)
    for call in (
        lambda: session.model.tokenize("x"),
        lambda: session.model.detokenize([5]),
        lambda: session.generate([5], max_tokens=2),
    ):
        try:
            call()
        except pg.UnsupportedError as error:
            print("no vocabulary" in str(error))
"""
    assert in_child(code, path).split() == ["(2048,)", "True", "True", "True"]


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"top_k": 0, "typical_p": 0.5}])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_not_sampled(
    nano_f16: Path, tmp_path: Path, value: float, sampling: dict[str, float]
) -> None:
    def damage(name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        if name == "output_norm.weight":
            return np.full_like(values, value)
        return unchanged(name, values)

    path = rewritten(tmp_path / "damaged.gguf", nano_f16, {}, damage)
    chosen = pg.Sampling(**sampling)  # type: ignore[arg-type]
    with (
        pg.Session(path, n_ctx=64) as session,
        pytest.raises(pg.SessionError, match="not finite"),
    ):
        session.generate([5], max_tokens=2, sampling=chosen)


@pytest.mark.parametrize(
    ("tensor", "dtype"),
    [
        ("blk.0.attn_qkv.weight", np.float64),
        ("blk.0.attn_qkv.weight", np.int32),
        ("blk.0.ffn_up.weight", np.int8),
        ("output_norm.weight", np.float16),
    ],
)
def test_types_that_no_product_takes(
    nano_f16: Path, tmp_path: Path, tensor: str, dtype: type[np.generic]
) -> None:
    def change(name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        return values.astype(dtype) if name == tensor else unchanged(name, values)

    path = rewritten(tmp_path / "odd.gguf", nano_f16, {}, change)
    with pytest.raises(pg.FormatError, match=tensor) as caught:
        pg.Model(path)
    assert caught.value.path == str(path)


def test_attention_that_looks_ahead(nano_f16: Path, tmp_path: Path) -> None:
    path = rewritten(tmp_path / "ahead.gguf", nano_f16, {"phi3.attention.causal": False})
    with (
        pg.Session(path, n_ctx=2048, n_batch=2048) as session,
        pytest.raises(pg.UnsupportedError, match="generates no text"),
    ):
        session.eval([5])


def test_the_first_error_is_told(nano_f16: Path, tmp_path: Path) -> None:
    path = rewritten(tmp_path / "odd.gguf", nano_f16, {"general.architecture": "no-such"})
    with pytest.raises(pg.FormatError, match="unknown model architecture"):
        pg.Model(path)


@pytest.mark.parametrize("n_layer", [0, 513, 2**31, -1, "many"])
def test_numbers_of_layers_that_upstream_asserts(
    tmp_path: Path, nano_f16: Path, n_layer: object
) -> None:
    path = rewritten(tmp_path / "layers.gguf", nano_f16, {"phi3.block_count": n_layer})
    with pytest.raises(pg.FormatError, match="block_count"):
        pg.Model(path)


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """How each case ended in one process that loaded all of them, and ended by itself."""
    return dict(
        line.split("\t")
        for line in endings_of(hostile_loads.__file__, tmp_path_factory.mktemp("loads"))
    )


@pytest.mark.parametrize("name", list(hostile_loads.CASES))
def test_one_thing_wrong(endings: dict[str, str], name: str) -> None:
    _, _, expected = hostile_loads.CASES[name]
    if expected is None:
        assert endings[name] == "works"
    else:
        assert endings[name].startswith("FormatError True ") and expected in endings[name]


def test_containers_that_hold_no_model(endings: dict[str, str]) -> None:
    """The recipes of models that the container reader takes for what they are."""
    held = {name: ending for name, ending in endings.items() if name.startswith("container: ")}
    assert len(held) > 50
    assert {
        name.removeprefix("container: ") for name, ending in held.items() if ending == "works"
    } == {
        "sound",
        "scores too many",
        "token_type out of range",
        "merges without a space",
        "padding beyond the vocabulary",
    }
    assert all(
        ending == "works" or ending.startswith("FormatError True") for ending in held.values()
    )
