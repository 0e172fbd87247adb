"""Whole files: metadata, memory, progress, interruption, targets, importances, bad input."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

import gguf_bytes as gb
from phiggml.errors import FormatError, InputError, PhiggmlError, UnsupportedError
from phiggml.gguf import GGUFFile, GGUFValue, GGUFWriter
from phiggml.quantization import (
    Progress,
    QuantizeOptions,
    SourceModel,
    SourceTensor,
    WriteJob,
    quantize_model,
    write_model,
)
from tiny_models import KINDS, Kind, importances, tensors_of, write_source


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {name: write_source(folder / f"{name}.gguf", kind) for name, kind in KINDS.items()}


def test_metadata_and_numbers(sources: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    report = quantize_model(sources["odd"], out, "q8_0")
    reader = gguf.GGUFReader(out)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.file_type"] == 7
    assert fields["general.quantization_version"] == 2
    assert fields["test.numbers"] == [1, -2, 3]
    assert fields["test.wide"] == 2**40
    assert fields["test.words"] == ["a", "é"]
    source = tensors_of(KINDS["odd"])
    assert {t.name for t in reader.tensors} == set(source)
    for tensor in reader.tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        error = np.linalg.norm(numbers - source[tensor.name]) / np.linalg.norm(source[tensor.name])
        # Of 8 bits to a block's largest magnitude, about 3 sigma: 3 / 127 / sqrt(12) at worst.
        assert error < 0.007, tensor.name
    assert "blk.1.narrower.weight" in str(report)
    assert "not Q8_0: rows of 80" in str(report)
    assert report.path == out and report.seconds > 0
    numbers = sum(values.size for values in source.values())
    assert report.bits_per_weight == 8 * sum(t.nbytes for t in report.tensors) / numbers


def test_memory_and_threads_change_no_byte(sources: dict[str, Path], tmp_path: Path) -> None:
    imatrix = importances(KINDS["experts"])
    written = set()
    for i, (memory, threads) in enumerate([(None, 1), (20_000, 2), (3_100, 1), (3_100, 5)]):
        out = tmp_path / f"{i}.gguf"
        quantize_model(
            sources["experts"], out, "Q4_K_S", imatrix=imatrix, threads=threads,
            options=QuantizeOptions(max_memory=memory),
        )  # fmt: skip
        written.add(out.read_bytes())
    assert len(written) == 1


def test_progress(sources: dict[str, Path], tmp_path: Path) -> None:
    seen: list[Progress] = []
    report = quantize_model(
        sources["fused"], tmp_path / "out.gguf", "Q4_0", progress=seen.append,
        options=QuantizeOptions(max_memory=100_000),
    )  # fmt: skip
    total = sum(t.source_nbytes for t in report.tensors)
    assert seen[0] == Progress("quantize", 0, total)
    assert seen[-1] == Progress("quantize", total, total)
    assert [p.done for p in seen] == sorted({p.done for p in seen})
    assert len(seen) > len(report.tensors)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interruption_leaves_nothing(
    error: type[BaseException], sources: dict[str, Path], tmp_path: Path
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done > progress.total // 2:
            raise error

    with pytest.raises(error):
        quantize_model(sources["fused"], tmp_path / "out.gguf", "Q4_0", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_within_a_second(tmp_path: Path) -> None:
    """A process that quantizes for many seconds gets SIGINT in the middle of one tensor."""
    script = f"""
import sys, numpy as np
from phiggml.quantization import *
numbers = np.random.default_rng(1).normal(size=(2048, 4096)).astype(np.float32)
source = SourceModel("phi3", {{"phi3.block_count": 1}}, [
    SourceTensor("blk.0.ffn_up.weight", (262144, 4096), "F32",
                 lambda start, stop: numbers[: stop - start].view(np.uint8))])
try:
    write_model(source, {str(tmp_path / "out.gguf")!r}, "IQ4_XS", job=WriteJob(
        threads=2, progress=lambda p: print("going", flush=True),
        options=QuantizeOptions(max_memory=1 << 26)))
except KeyboardInterrupt:
    sys.exit(7)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"going\n"
        time.sleep(0.3)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
        took = time.monotonic() - started
    assert process.returncode == 7, stderr.decode()
    assert took < 1.0
    assert not list(tmp_path.iterdir())


def test_targets(sources: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    source.write_bytes(sources["fused"].read_bytes())
    before = source.read_bytes()
    link = tmp_path / "link.gguf"
    link.symlink_to(source)
    for out in (source, link):
        for overwrite in (False, True):
            with pytest.raises(InputError, match="it is the source itself"):
                quantize_model(source, out, "Q4_0", overwrite=overwrite)
    assert source.read_bytes() == before
    other = tmp_path / "other.gguf"
    other.write_text("mine")
    with pytest.raises(FileExistsError):
        quantize_model(source, other, "Q4_0")
    assert other.read_text() == "mine"
    quantize_model(source, other, "Q4_0", overwrite=True)
    assert other.read_bytes()[:4] == b"GGUF"
    with pytest.raises(FileNotFoundError):
        quantize_model(source, tmp_path / "nowhere" / "out.gguf", "Q4_0")
    with pytest.raises(FileNotFoundError):
        quantize_model(tmp_path / "absent.gguf", tmp_path / "out.gguf", "Q4_0")
    with pytest.raises(IsADirectoryError):
        quantize_model(source, tmp_path, "Q4_0", overwrite=True)


def test_a_dry_run_writes_nothing(sources: dict[str, Path], tmp_path: Path) -> None:
    report = quantize_model(sources["fused"], tmp_path / "out.gguf", "Q4_K_M", dry_run=True)
    assert not list(tmp_path.iterdir())
    assert "a dry run, nothing written" in str(report)


FUSED_NAME = "blk.0.ffn_up.weight"


@pytest.mark.parametrize(
    ("imatrix", "match"),
    [
        ({"nonesuch": np.ones(256, np.float32)}, "none of its 1 names"),
        ({FUSED_NAME: np.full(256, np.nan, np.float32)}, "ffn_up.*finite"),
        (3, "mapping"),
    ],
)
def test_bad_importances(
    imatrix: Any, match: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=match):
        quantize_model(sources["fused"], tmp_path / "out.gguf", "Q4_0", imatrix=imatrix)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"threads": 0}, InputError),
        ({"threads": -1}, InputError),
        ({"threads": True}, InputError),
        ({"options": QuantizeOptions(max_memory=0)}, InputError),
        ({"options": QuantizeOptions(max_memory=1000)}, InputError),
        ({"options": QuantizeOptions(max_memory=1 << 63)}, InputError),
        ({"options": QuantizeOptions(max_memory=1e9)}, InputError),  # type: ignore[arg-type]
        ({"type": "Q4_K"}, InputError),
        ({"overrides": {"(": "Q4_K"}}, InputError),
        ({"overrides": ["ffn_down"]}, InputError),
        ({"options": {"pure": True}}, InputError),
    ],
)
def test_bad_calls(
    more: dict[str, Any], error: type[PhiggmlError], sources: dict[str, Path], tmp_path: Path
) -> None:
    arguments = {"type": "Q4_0", **more}
    with pytest.raises(error):
        quantize_model(sources["fused"], tmp_path / "out.gguf", **arguments)
    assert not list(tmp_path.iterdir())


def test_quantized_sources_need_permission(sources: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"quantized already.*allow_requantize"):
        quantize_model(sources["blocks"], tmp_path / "out.gguf", "Q4_0")


def model_of(
    values: npt.NDArray[Any], name: str = "blk.0.ffn_up.weight", type: str = "F32", **metadata: Any
) -> SourceModel:
    rows = values.reshape(-1, values.shape[-1])
    tensor = SourceTensor(name, values.shape, type, lambda a, b: rows[a:b].view(np.uint8))
    return SourceModel("phi3", {"phi3.block_count": 1, **metadata}, [tensor])


@pytest.mark.parametrize("type", ["Q4_0", "F16", "F32"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(type: str, bad: float, tmp_path: Path) -> None:
    values = np.ones((4, 256), np.float32)
    values[3, 255] = bad
    with pytest.raises(InputError, match=r"blk\.0\.ffn_up\.weight: .*NaN or infinity"):
        write_model(model_of(values), tmp_path / "out.gguf", type, job=WriteJob())
    assert not list(tmp_path.iterdir())


def test_weights_beyond_the_range_of_f16(tmp_path: Path) -> None:
    values = np.full((4, 256), 1e30, np.float32)
    with pytest.raises(InputError, match=r"blk\.0\.ffn_up\.weight: .*overflow"):
        write_model(model_of(values), tmp_path / "out.gguf", "F16", job=WriteJob())


def test_integers_are_copied(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.int32).reshape(1, 256)
    source = model_of(values, "blk.0.ffn_gate_tid2eid.weight", "I32")
    write_model(source, tmp_path / "out.gguf", "Q4_0", job=WriteJob())
    (tensor,) = gguf.GGUFReader(tmp_path / "out.gguf").tensors
    assert np.array_equal(tensor.data.ravel(), values.ravel())


def test_other_alignments(tmp_path: Path) -> None:
    values = np.ones((3, 32), np.float32)
    source = model_of(values, **{"general.alignment": 128})
    report = write_model(source, tmp_path / "a.gguf", "Q4_0", job=WriteJob())
    assert report.nbytes == (tmp_path / "a.gguf").stat().st_size
    dry = write_model(source, tmp_path / "b.gguf", "Q4_0", job=WriteJob(dry_run=True))
    assert dry.nbytes == report.nbytes
    assert gguf.GGUFReader(tmp_path / "a.gguf").tensors[0].data_offset % 128 == 0


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ({}, FormatError),
        ({"general.architecture": 3}, FormatError),
        ({"general.architecture": "nonesuch", "nonesuch.block_count": 1}, UnsupportedError),
        ({"general.architecture": "phi3"}, FormatError),
        ({"general.architecture": "phi3", "phi3.block_count": 0}, UnsupportedError),
        ({"general.architecture": "phi3", "phi3.block_count": 513}, UnsupportedError),
        ({"general.architecture": "phi3", "phi3.block_count": 2**31}, UnsupportedError),
        ({"general.architecture": "phi3", "phi3.block_count": "four"}, FormatError),
        ({"general.architecture": "phi3", "phi3.block_count": 1, "split.count": 2}, FormatError),
        ({"general.architecture": "phi3", "phi3.block_count": 1, "split.count": 2, "split.no": 1},
         FormatError),
        ({"general.architecture": "phi3", "phi3.block_count": 1, "split.count": "2"}, FormatError),
    ],
)  # fmt: skip
def test_files_that_are_no_model(
    metadata: dict[str, Any], error: type[PhiggmlError], tmp_path: Path
) -> None:
    with GGUFWriter(tmp_path / "source.gguf") as writer:
        writer.metadata.update(metadata)
        writer.add_tensor("blk.0.ffn_up.weight", np.ones((4, 256), np.float32))
    with pytest.raises(error):
        quantize_model(tmp_path / "source.gguf", tmp_path / "out.gguf", "Q4_0")
    assert not (tmp_path / "out.gguf").exists()


def test_data_beyond_the_end_never_reach_the_output(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    """CVE-2026-7482 in a peer: the header promises more data than the file has."""
    whole = sources["fused"].read_bytes()
    source = tmp_path / "source.gguf"
    for missing in (1, 32, 5000, 100_000):
        source.write_bytes(whole[:-missing])
        with pytest.raises(FormatError):
            quantize_model(source, tmp_path / "out.gguf", "Q4_0")
    source.write_bytes(whole)

    def truncate(progress: Progress) -> None:
        os.truncate(source, len(whole) // 2)

    with pytest.raises(FormatError, match="shorter"):
        quantize_model(source, tmp_path / "out.gguf", "Q4_0", progress=truncate)
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]


def split_source(folder: Path, kind: Kind) -> Path:
    """The model in three parts, named and keyed as llama-gguf-split does."""
    names = list(tensors_of(kind))
    whole = gguf.GGUFReader(write_source(folder / "whole.gguf", kind))
    tensors = {t.name: t for t in whole.tensors}
    for part, chosen in enumerate((names[:5], names[5:20], names[20:])):
        with GGUFWriter(folder / f"m-{part + 1:05}-of-00003.gguf") as writer:
            if part == 0:
                with GGUFFile(folder / "whole.gguf") as file:
                    for key in file.metadata:
                        writer.metadata[key] = file.metadata.exact(key)
            writer.metadata["split.no"] = GGUFValue(part, "UINT16")
            writer.metadata["split.count"] = GGUFValue(3, "UINT16")
            writer.metadata["split.tensors.count"] = GGUFValue(len(names), "INT32")
            for name in chosen:
                tensor = tensors[name]
                data = np.ascontiguousarray(tensor.data).view(np.uint8)
                writer.add_tensor(name, data, tensor.tensor_type.name)
    return folder / "m-00001-of-00003.gguf"


def test_parts_are_merged(sources: dict[str, Path], tmp_path: Path) -> None:
    first = split_source(tmp_path, KINDS["fused"])
    quantize_model(first, tmp_path / "merged.gguf", "Q4_K_M")
    quantize_model(sources["fused"], tmp_path / "single.gguf", "Q4_K_M")
    merged, single = ((tmp_path / f"{n}.gguf").read_bytes() for n in ("merged", "single"))
    assert merged == single
    second = tmp_path / "m-00002-of-00003.gguf"
    quantize_model(second, tmp_path / "merged.gguf", "Q4_K_M", overwrite=True)
    assert (tmp_path / "merged.gguf").read_bytes() == single
    with pytest.raises(InputError, match="the source itself"):
        quantize_model(first, second, "Q4_0", overwrite=True)
    first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(FormatError, match="-00001-of-00003"):
        quantize_model(tmp_path / "renamed.gguf", tmp_path / "out.gguf", "Q4_0")
    (tmp_path / "renamed.gguf").rename(first)
    (tmp_path / "m-00003-of-00003.gguf").unlink()
    with pytest.raises(FileNotFoundError):
        quantize_model(first, tmp_path / "out.gguf", "Q4_0")
    (tmp_path / "m-00003-of-00003.gguf").write_bytes(second.read_bytes())
    with pytest.raises(FormatError, match="part 3 of 3"):
        quantize_model(first, tmp_path / "out.gguf", "Q4_0")


def test_padding_of_the_source_is_left_behind(sources: dict[str, Path], tmp_path: Path) -> None:
    padded = tmp_path / "padded.gguf"
    with GGUFFile(sources["fused"]) as f, GGUFWriter(tmp_path / "copy.gguf") as w:
        w.copy_metadata(f.metadata)
        for tensor in f.tensors.values():
            w.add_tensor(tensor.name, tensor.data, tensor.type)
    content = (tmp_path / "copy.gguf").read_bytes()
    padding = gb.pair("phiggml.padding", gb.STRING, gb.string(b" " * (4096 - 35)))
    n_pairs = int.from_bytes(content[16:24], "little")
    padded.write_bytes(content[:16] + struct.pack("<Q", n_pairs + 1) + padding + content[24:])
    planned = quantize_model(padded, tmp_path / "out.gguf", "Q8_0", dry_run=True)
    written = quantize_model(padded, tmp_path / "out.gguf", "Q8_0")
    quantize_model(sources["fused"], tmp_path / "same.gguf", "Q8_0")
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "same.gguf").read_bytes()
    assert planned.nbytes == written.nbytes == (tmp_path / "out.gguf").stat().st_size
