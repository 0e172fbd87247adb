"""Ids of the Hugging Face hub, against a server on this machine that answers as the hub does."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import phiggml as pg
from hub_server import COMMIT, HubServer, hub_serving
from phiggml.conversion.hub import HubId, LocalFolder, Wanted, local_folder, parse_hub_id
from phiggml.conversion.hub_download import logged_as_ours
from phiggml.conversion.lora import convert_lora

DATA = Path(__file__).resolve().parent / "data"
MINI, SHARDED = DATA / "phi3-mini-tiny", DATA / "phi3.5-mini-tiny"
MODEL = "microsoft/Phi-3-tiny-instruct"
CARD = b"---\nlicense: mit\nlanguage: [en]\n---\n# A card\n"
# What must never be asked for.
DECOYS = {
    "pytorch_model.bin": b"\x80",
    "consolidated.safetensors": b"x",
    "consolidated.00.pth": b"\x80",
    "modeling_phi3.py": b"raise SystemExit",
    "onnx/model.onnx": b"x",
    "Phi-3-Q4.gguf": b"GGUF",
    "nested/model.safetensors": b"x",
    ".gitattributes": b"x",
}


def folder_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def checkpoint_files(folder: Path = MINI) -> dict[str, bytes]:
    return {**folder_files(folder), "README.md": CARD, **DECOYS}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no folder of that name here, and no address of the real hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    _connect(monkeypatch, "http://127.0.0.1:9")
    return tmp_path / "cache"


def _connect(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_serving(HubServer(MODEL, checkpoint_files())) as server:
        _connect(monkeypatch, server.url)
        yield server


def located(name: str = MODEL, **settings: Any) -> LocalFolder:
    with local_folder(name, operation="convert", **settings) as folder:
        return folder


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("microsoft/phi-2", HubId("microsoft/phi-2", None)),
        ("a/b@v1.0", HubId("a/b", "v1.0")),
        ("a/b@refs/pr/1", HubId("a/b", "refs/pr/1")),
        ("phi-2", None),
        ("a/b/c", None),
        ("./phi", None),
        ("../phi", None),
        ("/phi/2", None),
        ("a/..", None),
        ("a/b@", None),
        ("a/b@../..", None),
        ("a/b--c", None),
        ("a/b.git", None),
        ("-a/b", None),
        ("a/b ", None),
        ("a/b\n", None),
        ("ä/b", None),
        ("a/" + "b" * 97, None),
        ("", None),
    ],
)
def test_what_is_an_id(text: str, found: HubId | None) -> None:
    assert parse_hub_id(text) == found


def test_convert_by_id(hub: HubServer, tmp_path: Path) -> None:
    report = pg.convert(MODEL, tmp_path / "a.gguf", "F32")
    wanted = set(folder_files(MINI)) | {"README.md"}
    assert hub.names_given == wanted
    assert len(hub.given) == len(wanted)
    pg.convert(MINI, tmp_path / "b.gguf", "F32")
    with pg.GGUFFile(report.path) as ours, pg.GGUFFile(tmp_path / "b.gguf") as theirs:
        assert {n: bytes(t.data) for n, t in ours.tensors.items()} == {
            n: bytes(t.data) for n, t in theirs.tensors.items()
        }
        assert ours.metadata["general.name"] == "Phi-3 Tiny Instruct"
        assert ours.metadata["general.organization"] == "Microsoft"
        assert ours.metadata["general.finetune"] == "instruct"
        assert ours.metadata["general.license"] == "mit"
        assert ours.metadata["tokenizer.ggml.tokens"] == theirs.metadata["tokenizer.ggml.tokens"]
    hub.given.clear()
    pg.convert(MODEL, tmp_path / "a.gguf", "F32", overwrite=True)
    assert not hub.given


def test_dry_run_fetches_no_weights(hub: HubServer, cache: Path, tmp_path: Path) -> None:
    report = pg.convert(MODEL, tmp_path / "a.gguf", "F32", dry_run=True)
    given = dict(hub.given)
    assert given["model.safetensors"] <= 100_001 < len(hub.files["model.safetensors"])
    assert not list(cache.rglob("model.safetensors"))
    assert not report.written
    assert str(report).startswith(f"{MODEL} -> phi3: ")
    assert pg.convert(MINI, tmp_path / "b.gguf", "F32").tensors == report.tensors
    assert pg.convert(MODEL, tmp_path / "a.gguf", "F32").nbytes == report.nbytes


def test_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = checkpoint_files(SHARDED)
    files["model-00001-of-00009.safetensors"] = b"of another set"
    shards = {name for name in folder_files(SHARDED) if name.endswith(".safetensors")}
    assert len(shards) == 2
    with hub_serving(HubServer(MODEL, files)) as server:
        _connect(monkeypatch, server.url)
        located()
    assert {n for n in server.names_given if n.endswith(".safetensors")} == shards
    assert "model.safetensors.index.json" in server.names_given
    # One file of all weights goes before an index.
    files["model.safetensors"] = MINI.joinpath("model.safetensors").read_bytes()
    with hub_serving(HubServer("a/b", files)) as server:
        _connect(monkeypatch, server.url)
        located("a/b")
    assert {n for n in server.names_given if n.endswith(".safetensors")} == {"model.safetensors"}


def test_a_folder_of_this_name_wins(hub: HubServer, tmp_path: Path) -> None:
    shutil.copytree(MINI, tmp_path / MODEL)
    assert located() == LocalFolder(Path(MODEL))
    assert located(str(MINI)) == LocalFolder(MINI)
    with local_folder(Path("a/b"), operation="convert") as folder:
        assert folder == LocalFolder(Path("a/b"))
    assert not hub.given
    with pytest.raises(FileNotFoundError, match="no such folder"):
        pg.convert("./a/b", tmp_path / "a.gguf")


def test_revisions(hub: HubServer) -> None:
    folder = located(f"{MODEL}@v1")
    assert folder.model_id == MODEL
    assert folder.path.name == COMMIT == located(f"{MODEL}@{COMMIT}").path.name
    with pytest.raises(FileNotFoundError, match=rf"{MODEL}@v2: .* no such revision"):
        located(f"{MODEL}@v2")


def test_offline_takes_what_is_there(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = located()
    for offline, url in ((True, hub.url), (False, "http://127.0.0.1:9")):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        _connect(monkeypatch, url)
        hub.given.clear()
        assert located() == folder
        pg.convert(MODEL, tmp_path / f"{offline}.gguf", dry_run=True)
        assert not hub.given
        kind = FileNotFoundError if offline else ConnectionError
        with pytest.raises(kind, match=r"other/one: is neither a folder here nor in the cache"):
            located("other/one")


@pytest.mark.parametrize(
    ("refusal", "files_only", "kind", "message"),
    [
        ((404, "RepoNotFound"), False, FileNotFoundError, r"no such model.*Log in"),
        ((401, "RepoNotFound"), False, FileNotFoundError, r"no such model.*Log in"),
        ((403, "GatedRepo"), True, PermissionError, r"accepted its terms.*HF_TOKEN"),
        ((401, "GatedRepo"), False, PermissionError, r"accepted its terms.*HF_TOKEN"),
        ((401, ""), False, PermissionError, r"HTTP 401.*Log in"),
        ((403, ""), True, PermissionError, r"HTTP 403.*Log in"),
        ((500, ""), False, OSError, r"the hub failed \(HTTP 500\)"),
    ],
)
def test_refusals(
    refusal: tuple[int, str],
    files_only: bool,
    kind: type[OSError],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with hub_serving(HubServer(MODEL, checkpoint_files(), refusal, files_only)) as server:
        _connect(monkeypatch, server.url)
        for wanted in Wanted:
            if wanted is not Wanted.ADAPTER:
                with pytest.raises(kind, match=message) as error:
                    located(wanted=wanted)
                assert MODEL in str(error.value)
    assert not server.given


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha": "../../../../x"}, "no commit"),
        ({"sha": 5}, "no commit"),
        ({"sha": None}, "no commit"),
        ({"siblings": 5}, "list of its files"),
        ({"siblings": [{"x": 1}]}, "list of its files"),
        ({"siblings": [{"rfilename": "config.json", "size": "12"}]}, "a size"),
        ({"siblings": [{"rfilename": "config.json", "size": -5}]}, "a size"),
        ({"siblings": [{"rfilename": "config.json", "size": 1 << 70}]}, "a size"),
        ({"siblings": [{"rfilename": "../config.json", "size": 1}]}, "no config.json"),
        (b"[]", "list of its files"),
        (b'{"id":', "list of its files"),
        (b"[" * 100_000, "list of its files"),
    ],
    ids=range(12),
)
def test_lists_that_are_none(
    changes: dict[str, Any] | bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_serving(HubServer(MODEL, checkpoint_files(), listing=changes)) as server:
        _connect(monkeypatch, server.url)
        for wanted in (Wanted.CHECKPOINT, Wanted.HEADERS):
            with pytest.raises(pg.FormatError, match=rf"{MODEL}: .*{message}"):
                located(wanted=wanted)
    assert not server.given


def test_a_token_that_is_none(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for token, kind in (("hf_sécret", PermissionError), ("hf_\x0bsecret", OSError)):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(kind) as error:
            located()
        told = "".join(traceback.format_exception(error.value))
        assert "hf_" not in told and "secret'" not in told


def test_the_log_comes_back_when_two_have_fetched() -> None:
    handlers = logging.getLogger("huggingface_hub").handlers
    before = handlers[:]
    first, second = logged_as_ours(), logged_as_ours()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert handlers != before
    second.__exit__(None, None, None)
    assert handlers == before


def test_what_a_model_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    files = checkpoint_files()
    del files["model.safetensors"]
    with hub_serving(HubServer(MODEL, files)) as server:
        _connect(monkeypatch, server.url)
        with pytest.raises(pg.UnsupportedError, match=rf"{MODEL}: holds no model\.safetensors"):
            located()
        assert "pytorch_model.bin" not in server.names_given
    del files["config.json"]
    with hub_serving(HubServer(MODEL, files)) as server:
        _connect(monkeypatch, server.url)
        with pytest.raises(pg.FormatError, match=rf"{MODEL}: holds no config\.json"):
            located()
        with pytest.raises(pg.FormatError, match=rf"{MODEL}: holds no adapter_config\.json"):
            located(wanted=Wanted.ADAPTER)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 100,
        (2).to_bytes(8, "little") + b"[]",
        b"\x20" + bytes(7) + b'{"a":{"dtype":"F32","shape":[1]}}',
        b"\x3a" + bytes(7) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0, 1000]}}',
    ],
    ids=["empty", "length", "list", "entry", "end"],
)
def test_headers_that_are_none(
    content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with hub_serving(HubServer(MODEL, {**checkpoint_files(), "model.safetensors": content})) as s:
        _connect(monkeypatch, s.url)
        with pytest.raises((pg.FormatError, OSError), match=r"safetensors|hub"):
            pg.convert(MODEL, tmp_path / "a.gguf", dry_run=True)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(pg.UnsupportedError, match=r"no such folder.*pip install phiggml\[hub\]"):
        pg.convert(MODEL, tmp_path / "a.gguf")
    pg.convert(str(MINI), tmp_path / "a.gguf", dry_run=True)


def test_progress_and_silence(
    hub: HubServer, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    handlers = logging.getLogger("huggingface_hub").handlers[:]
    steps: list[pg.Progress] = []
    located(progress=steps.append)
    sizes = {name: len(hub.files[name]) for name in hub.names_given}
    assert {step.stage for step in steps} == {"download"}
    assert steps[-1].done == steps[-1].total == sum(sizes.values())
    assert [s.done for s in steps if s.total == steps[-1].total] == sorted(
        s.done for s in steps if s.total == steps[-1].total
    )
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("huggingface_hub").handlers == handlers

    def stop(step: pg.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        located(progress=stop)


def test_an_adapter_and_its_base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    adapter = DATA / "lora_phi3_rslora"
    files = {**folder_files(adapter), **DECOYS, "adapter_model.bin": b"\x80"}
    with hub_serving(HubServer("me/Phi-3-poet-lora", files)) as server:
        _connect(monkeypatch, server.url)
        report = convert_lora("me/Phi-3-poet-lora", tmp_path / "a.gguf", base=adapter)
        assert server.names_given == {"adapter_config.json", "adapter_model.safetensors"}
        server.given.clear()
        again = convert_lora(adapter, tmp_path / "b.gguf", base="me/Phi-3-poet-lora@v1")
        assert server.names_given == {"config.json"}
    assert again.tensors == report.tensors
    with pg.GGUFFile(report.path) as file:
        assert file.metadata["general.name"] == "Phi 3 Poet Lora"


def test_command_line(hub: HubServer, cache: Path, tmp_path: Path) -> None:
    """In a process of its own, where HF_ENDPOINT and HF_HUB_CACHE are read as users set them."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache)}
    out = tmp_path / "a.gguf"

    def run(name: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "phiggml", "convert", name, "-o", str(out), *more]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    done = run(MODEL, "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert out.exists() and hub.names_given.isdisjoint(DECOYS)
    missing = run("microsoft/none", "--overwrite")
    assert missing.returncode == 8 and missing.stdout == ""
    assert missing.stderr.startswith("phiggml: convert: microsoft/none: there is no such folder")
    assert missing.stderr.count("\n") == 1
