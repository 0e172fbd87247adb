"""The folder of an export: what is replaced, what stays, and what an interrupted one leaves."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import checkpoints
import phiggml as pg
from command_line import Out, complaint, phiggml
from exports import changed
from phiggml.atomic_file import AtomicFile


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A GGUF file of the seeded checkpoint, F32."""
    checkpoints.write_checkpoint(tmp_path / "tiny")
    pg.convert(tmp_path / "tiny", tmp_path / "tiny.gguf", "F32")
    return tmp_path / "tiny.gguf"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_empty_folder_is_filled_and_another_left_alone(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".phiggml-0-0.tmp").touch()  # what a killed process left is nothing
    pg.export_checkpoint(tiny, out)
    before = contents(out)
    with pytest.raises(FileExistsError) as caught:
        pg.export_checkpoint(tiny, out)
    assert caught.value.filename == str(out)
    assert contents(out) == before
    with pytest.raises(NotADirectoryError):
        pg.export_checkpoint(tiny, tiny, overwrite=True)
    with pytest.raises(FileNotFoundError):
        pg.export_checkpoint(tiny, tmp_path / "no" / "out")
    with pytest.raises(FileNotFoundError):
        pg.export_checkpoint(tmp_path / "no.gguf", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_overwriting_leaves_one_checkpoint_and_the_users_files(tiny: Path, tmp_path: Path) -> None:
    fresh = pg.export_checkpoint(tiny, tmp_path / "fresh")
    many = pg.export_checkpoint(tiny, tmp_path / "out", max_shard_bytes=40_000)
    assert "model.safetensors.index.json" in many.files
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "model.safetensors.bak").write_text("mine")
    (tmp_path / "out" / "data").mkdir()
    report = pg.export_checkpoint(tiny, tmp_path / "out", overwrite=True)
    assert report.files == fresh.files
    shutil.rmtree(tmp_path / "out" / "data")
    mine = {"notes.txt": b"mine", "model.safetensors.bak": b"mine"}
    assert contents(tmp_path / "out") == {**contents(tmp_path / "fresh"), **mine}
    # Without added tokens there is no added_tokens.json, so an old one would say too much.
    types = [2, 3, 3, *[6] * 256, *[1] * 29]
    plain = changed(
        tiny, tmp_path / "b.gguf", {"tokenizer.ggml.token_type": pg.GGUFValue(types, "INT32")}
    )
    pg.export_checkpoint(plain, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "added_tokens.json").exists()


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json"])
def test_what_readers_would_prefer_is_refused(name: str, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("{}")
    with pytest.raises(pg.InputError, match=f"{name}: would be read in place"):
        pg.export_checkpoint(tiny, out, overwrite=True)
    assert contents(out) == {name: b"{}"}


def test_the_source_is_not_written_over(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    tiny.rename(out / "model.safetensors")
    before = contents(out)
    with pytest.raises(pg.InputError, match="is the source itself"):
        pg.export_checkpoint(out / "model.safetensors", out, overwrite=True)
    assert contents(out) == before


def test_an_interrupted_export_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))

    def interrupt(event: pg.Progress) -> None:
        if event.done > event.total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pg.export_checkpoint(tiny, tmp_path / "out", progress=interrupt, max_shard_bytes=9999)
    assert sorted(tmp_path.rglob("*")) == before
    # Nor does it touch the checkpoint that it was to replace.
    pg.export_checkpoint(tiny, tmp_path / "out")
    old = contents(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        pg.export_checkpoint(tiny, tmp_path / "out", progress=interrupt, overwrite=True)
    assert contents(tmp_path / "out") == old


@pytest.mark.parametrize("failing", [0, 3, 20])
def test_a_folder_with_a_config_is_whole(
    failing: int, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system refuses the name of one file after the other."""
    out = tmp_path / "out"
    pg.export_checkpoint(tiny, tmp_path / "old", dtype="BF16")
    rename, calls = AtomicFile.rename, [0]

    def refuse(file: AtomicFile, target: Path, *, overwrite: bool) -> None:
        calls[0] += 1
        if calls[0] > failing:
            raise OSError(5, "refused", str(target))
        rename(file, target, overwrite=overwrite)
        named = [path for path in out.iterdir() if not path.name.startswith(".")]
        assert not (out / "config.json").exists() or calls[0] == len(named)

    for overwrite in (False, True):
        calls[0] = 0
        monkeypatch.setattr(AtomicFile, "rename", refuse)
        if failing < 20:
            with pytest.raises(OSError, match="refused"):
                pg.export_checkpoint(tiny, out, overwrite=overwrite)
            assert not (out / "config.json").exists()
            assert overwrite or not out.exists()
        else:
            pg.export_checkpoint(tiny, out, overwrite=overwrite)
            monkeypatch.undo()
            assert pg.convert(out, tmp_path / "b.gguf", "F32", overwrite=True)
            assert (tmp_path / "b.gguf").read_bytes() == tiny.read_bytes()
        monkeypatch.undo()
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "old", out)


def test_rows_are_carried_in_pieces(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pg.export_checkpoint(tiny, tmp_path / "whole")
    monkeypatch.setattr("phiggml.conversion.export._PIECE_BYTES", 12 * 32 * 7)
    seen: list[pg.Progress] = []
    report = pg.export_checkpoint(tiny, tmp_path / "pieces", progress=seen.append)
    assert contents(tmp_path / "whole") == contents(tmp_path / "pieces")
    total = sum(tensor.nbytes for tensor in report.tensors)
    assert (seen[0].done, seen[-1].done) == (0, total)
    steps = [b.done - a.done for a, b in itertools.pairwise(seen)]
    # Seven rows of 32 numbers, or one of 48.
    assert max(steps) == 7 * 32 * 4 and min(steps) > 0
    assert {(event.stage, event.total) for event in seen} == {("export", total)}


def test_the_command_line_exports(tiny: Path, tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "out"
    command = ("gguf", "export", tiny, "-o", out)
    assert phiggml(*command, "--max-shard-size", "0.04MB", "--dry-run") == 0
    dry = capsys.readouterr().out
    assert "model.layers.0.self_attn.qkv_proj.weight" in dry and "a dry run" in dry
    assert not out.exists()
    assert phiggml(*command, "--max-shard-size", "40K", "--dtype", "bf16", "--json") == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["files"] == {path.name: path.stat().st_size for path in out.iterdir()}
    assert (document["dtype"], document["architecture"]) == ("BF16", "Phi3ForCausalLM")
    assert len(document["tensors"]) == 15 and document["nbytes"] == sum(document["files"].values())
    assert phiggml(*command) == 8
    assert "Pass --overwrite" in complaint(capsys)
    assert phiggml(*command, "--overwrite") == 0
    told = capsys.readouterr().out
    assert "model.safetensors" in told and "GGUF keeps neither" in told
    assert phiggml(*command, "--overwrite", "-q", "--threads", "1") == 0
    assert capsys.readouterr() == ("", "")
    for size in ("5X", "-1", "", "1e9"):
        with pytest.raises(SystemExit) as caught:
            phiggml(*command, f"--max-shard-size={size}")
        assert caught.value.code == 2 and "is no size" in complaint(capsys)
    llama = changed(tiny, tmp_path / "llama.gguf", {"general.architecture": "llama"})
    assert phiggml("gguf", "export", llama, "-o", tmp_path / "new") == 5
    assert "These can: 'phi3'" in complaint(capsys)
