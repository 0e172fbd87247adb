"""What the command line does with what goes wrong: one line on stderr, a code for each class."""

from __future__ import annotations

import os
import re
import resource
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

import phiggml as pg
from command_line import NANO, Out, complaint, phiggml, started, without_template
from phiggml import cli


@pytest.mark.parametrize("cut", [0, 3, 20, 3000, 2_000_000])
@pytest.mark.parametrize("verb", ["inspect", "run", "chat", "quantize"])
def test_truncated_files(nano_q4: Path, tmp_path: Path, capsys: Out, verb: str, cut: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(nano_q4.read_bytes()[:cut])
    more = {
        "run": ["-p", "Hi"],
        "quantize": ["-o", str(tmp_path / "out.gguf"), "--type", "Q8_0"],
    }
    assert phiggml(verb, path, *more.get(verb, [])) == 4
    line = complaint(capsys)
    assert str(path) in line
    assert re.search(r"\(byte \d+\)$", line)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("convert {nano} -o {new} --type Q9", 3, "'Q9'"),
        ("convert {nano} -o {new} --override x(=Q4_K", 3, "no regular expression"),
        ("convert {nano} -o {new} --override x=Q99", 3, "'Q99'"),
        ("convert {nano} -o {new} --threads 0", 3, "threads"),
        ("convert {empty} -o {new}", 4, "config.json"),
        ("convert {missing} -o {new}", 8, "{missing}"),
        ("convert {nano} -o {missing}/new.gguf", 8, "{missing}/new.gguf"),
        ("convert {nano} -o {empty} --overwrite", 8, "{empty}: Is a directory"),
        ("run {missing} -p Hi", 8, "{missing}: No such file"),
        ("run {empty} -p Hi", 8, "{empty}: Is a directory"),
        ("run {q4} -p Hi -n 0", 3, "max_tokens"),
        ("run {q4} -p Hi --top-k -1", 3, "top_k"),
        ("run {q4} -p Hi --temperature nan", 3, "temperature"),
        ("run {q4} -p Hi --n-ctx -3", 3, "n_ctx"),
        ("run {q4} -p Hi --n-ctx 4", 7, "n_ctx = 4"),
        ("run {q4} -p \udcff", 3, "surrogates"),
        ("chat {plain}", 5, "no chat template"),
        ("inspect {missing}", 8, "{missing}"),
        ("inspect {nano}/config.json", 4, "no GGUF"),
    ],
)
def test_failures_are_one_line(
    nano_q4: Path,
    tmp_path: Path,
    capsys: Out,
    arguments: str,
    code: int,
    says: str,
) -> None:
    (tmp_path / "empty").mkdir()
    places = {
        "nano": str(NANO),
        "q4": str(nano_q4),
        "plain": str(without_template(nano_q4, tmp_path)),
        "empty": str(tmp_path / "empty"),
        "missing": str(tmp_path / "missing"),
        "new": str(tmp_path / "new.gguf"),
    }
    assert phiggml(*(word.format(**places) for word in arguments.split(" "))) == code
    assert says.format(**places) in complaint(capsys)
    assert not (tmp_path / "new.gguf").exists()


@pytest.mark.skipif(
    any(device.kind == "gpu" for device in pg.devices()), reason="there is a GPU here"
)
def test_asking_for_an_absent_gpu(nano_q4: Path, capsys: Out) -> None:
    assert phiggml("run", nano_q4, "-p", "Hi", "--n-gpu-layers", "all") == 6
    assert "GPU" in complaint(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fly",),
        ("run",),
        ("run", "x.gguf", "-p", "Hi", "--seed", "one"),
        ("run", "x.gguf", "-p", "Hi", "--n-gpu-layers", "some"),
        ("convert", "x", "-o", "y", "--override", "noequals"),
        ("convert", "x", "-o", "y", "--dry"),
        ("quantize", "x", "-o", "y"),
    ],
)
def test_a_wrong_command_line(arguments: tuple[str, ...], capsys: Out) -> None:
    with pytest.raises(SystemExit) as left:
        phiggml(*arguments)
    assert left.value.code == 2
    assert "--help" in complaint(capsys)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (pg.PhiggmlError("a: b."), 1, "a: b."),
        (pg.UnsupportedError("a: b."), 5, "a: b."),
        (pg.FormatError("a: b.", path="p.gguf", offset=7), 4, "p.gguf: a: b. (byte 7)"),
        (pg.DeviceError("two\nlines"), 6, "two lines"),
        (OSError(28, "No space left on device"), 8, "No space left on device."),
        (MemoryError(), 9, "out of memory."),
        (KeyboardInterrupt(), 130, "interrupted."),
        (RuntimeError("odd"), 1, "an internal fault: RuntimeError: odd"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_each_class_has_its_code(
    error: BaseException, code: int, says: str, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> NoReturn:
        raise error

    monkeypatch.setattr(pg, "devices", fail)
    assert phiggml("devices") == code
    assert complaint(capsys).startswith(f"phiggml: {says}")


def test_the_table_of_codes_is_whole(capsys: Out) -> None:
    with pytest.raises(SystemExit) as left:
        phiggml("--help")
    assert left.value.code == 0
    text = capsys.readouterr().out
    for kind, code in cli._CODES:
        assert re.search(rf"^  {code} +", text, re.MULTILINE)
        if issubclass(kind, pg.PhiggmlError):
            assert re.search(rf"^  {code} +{kind.__name__}:", text, re.MULTILINE)
    for name, _, _ in cli._VERBS:
        assert re.search(rf"^    {name}\s", text, re.MULTILINE)


# as a process -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("inspect", "missing.gguf"), 8, "missing.gguf: No such file or directory."),
        (("inspect", "junk.gguf"), 4, "junk.gguf"),
        (("convert", str(NANO), "-o", "x.gguf", "--type", "none"), 3, "'none'"),
    ],
)
def test_exit_codes_of_the_process(
    tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    (tmp_path / "junk.gguf").write_bytes(bytes(range(256)))
    done = started(*arguments, stdout=subprocess.PIPE, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("phiggml: ")
    assert says in line


def test_version_of_the_process() -> None:
    done = started("--version", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"phiggml {pg.__version__}\n", "")


def test_a_reader_who_leaves(nano_q4: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        done = started("inspect", nano_q4, stdout=nobody)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no /dev/full")
def test_a_full_disk_behind_stdout(tmp_path: Path) -> None:
    """The name of the file that was written is not the one to look at."""
    out = tmp_path / "nano.gguf"
    with Path("/dev/full").open("wb") as full:
        done = started("convert", NANO, "-o", out, "--json", stdout=full)
    assert done.returncode == 8
    assert done.stderr == "phiggml: stdout: No space left on device.\n"
    assert out.exists()


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams(nano_f16: Path, tmp_path: Path, closed: tuple[int, ...]) -> None:
    """No file gets the number of a stream, and nothing fails for want of one."""
    out = tmp_path / "out.gguf"

    def close() -> None:
        for number in closed:
            os.close(number)

    done = started("quantize", nano_f16, "-o", out, "--type", "Q4_0", "-v", preexec_fn=close)
    assert done.returncode == 0
    assert pg.verify_gguf(out).ok


def test_a_file_that_grows_too_large(tmp_path: Path) -> None:
    out = tmp_path / "nano.gguf"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = started("convert", NANO, "-o", out, "--threads", "1", preexec_fn=limit)
    assert done.returncode == 8
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"phiggml: {tmp_path}")
    assert list(tmp_path.iterdir()) == []
