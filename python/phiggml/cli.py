"""The command line: thin verbs over the public API, and an exit code for each kind of failure.

    code  meaning
    0     done
    1     `doctor`, `gguf verify`, `gguf diff` or `gguf hash --check` found something; or phiggml
          itself is at fault
    2     the command line is wrong
    3     InputError: an argument has a wrong value
    4     FormatError: a file is no valid GGUF, checkpoint or tokenizer
    5     UnsupportedError: valid, but not done here
    6     DeviceError: a device is absent, out of memory, or refused
    7     SessionError: the context is full, or decoding failed
    8     the file system refused
    9     out of memory
    130   interrupted
    141   whoever read the output has gone

A failure is one line on stderr.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NoReturn

import phiggml as pg
from phiggml.cli_bench import add_bench
from phiggml.cli_chat import add_chat
from phiggml.cli_compare import add_compare
from phiggml.cli_convert import add_convert, add_quantize
from phiggml.cli_convert_lora import add_convert_lora
from phiggml.cli_demo import add_demo
from phiggml.cli_doctor import add_devices, add_doctor
from phiggml.cli_gguf import add_gguf
from phiggml.cli_inspect import add_inspect
from phiggml.cli_plan import add_plan
from phiggml.cli_recipe import add_recipe
from phiggml.cli_run import add_run
from phiggml.cli_terminal import flush, printable

__all__ = ["main"]

_INTERNAL, _USAGE, _INTERRUPTED, _READER_GONE = 1, 2, 130, 141
_CODES: tuple[tuple[type[Exception], int], ...] = (
    (pg.InputError, 3),
    (pg.FormatError, 4),
    (pg.UnsupportedError, 5),
    (pg.DeviceError, 6),
    (pg.SessionError, 7),
    (OSError, 8),
    (MemoryError, 9),
)

_VERBS: tuple[tuple[str, Callable[[argparse.ArgumentParser], None], str], ...] = (
    ("demo", add_demo, "convert, quantize and ask the model that phiggml carries"),
    ("convert", add_convert, "turn a checkpoint into GGUF, quantized on the way where asked"),
    ("convert-lora", add_convert_lora, "turn a LoRA adapter of PEFT into GGUF"),
    ("quantize", add_quantize, "turn a GGUF file into one of another type"),
    ("recipe", add_recipe, "show which tensor gets which type, before anything is quantized"),
    ("plan", add_plan, "show which tensor would go where, and what each device needs"),
    ("run", add_run, "answer a prompt"),
    ("chat", add_chat, "talk with a model"),
    ("bench", add_bench, "measure how fast a model reads and writes here"),
    ("inspect", add_inspect, "show what a GGUF file holds"),
    ("compare", add_compare, "measure what each quant type does to a tensor or a file"),
    ("gguf", add_gguf, "edit, compare, check, split, merge and export GGUF files"),
    ("devices", add_devices, "list what can compute here"),
    ("doctor", add_doctor, "check this installation, and say what to do"),
)

logger = logging.getLogger("phiggml")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
        argv: the arguments, without the program's name; None means those of this process.

    Returns:
        The exit code; see this module's table.

    Raises:
        SystemExit: by argparse, for --help, --version and a wrong command line.
    """
    _open_what_is_closed()
    _take_any_text()
    arguments = argparse.Namespace()
    with ExitStack() as log:
        try:
            try:
                arguments = _parser().parse_args(argv)
                if arguments.verbose:
                    log.enter_context(_log_on_stderr())
                return int(arguments.verb(arguments))
            finally:
                flush()  # while what it raises can still be told in a sentence
        except BrokenPipeError:
            _discard_output()
            return _READER_GONE
        except KeyboardInterrupt:
            _complain("interrupted.", after_output=True)
            return _INTERRUPTED
        except (pg.PhiggmlError, OSError, MemoryError) as error:
            return _failed(error, arguments)
        except Exception as error:
            logger.exception("not foreseen")
            _complain(f"an internal fault: {type(error).__name__}: {error}. Report it, please.")
            return _INTERNAL


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(_USAGE, f"phiggml: {printable(message)}. See {self.prog} --help.\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="phiggml",
        description="Quantize, convert and run Microsoft's Phi models, and other GGUF models.",
        epilog=_exit_codes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"phiggml {pg.__version__}")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show the log on stderr, also after a verb"
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, add_arguments, meaning in _VERBS:
        verb = verbs.add_parser(
            name,
            help=meaning,
            description=f"{meaning[0].upper()}{meaning[1:]}.",
            allow_abbrev=False,
        )
        add_arguments(verb)
        verb.add_argument(
            "-v",
            "--verbose",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show the log on stderr",
        )
    return parser


def _exit_codes() -> str:
    """The table in this module's docstring, which python -OO takes away."""
    lines = (__doc__ or "").splitlines()
    return "exit codes:\n" + "\n".join(line[2:] for line in lines if line.startswith("    "))


def _open_what_is_closed() -> None:
    """Gives a process that was started without one of its streams one that leads nowhere.

    Else the next file would get the stream's number, and what C code prints would land in it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def _take_any_text() -> None:
    """No name or answer is beyond what the terminal's encoding may lack, nor any input."""
    for stream, errors in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


class _PrintableFormatter(logging.Formatter):
    """Messages hold names that strangers chose."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter("%(levelname)s %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _failed(error: Exception, arguments: argparse.Namespace) -> int:
    _complain(_sentence(error, arguments))
    if isinstance(error, OSError):
        _discard_output_if_stuck()
    return next((code for kind, code in _CODES if isinstance(error, kind)), _INTERNAL)


def _sentence(error: Exception, arguments: argparse.Namespace) -> str:
    if isinstance(error, OSError) and error.strerror:
        # A full disk has no name of its own: it is the output's.
        name = error.filename if error.filename is not None else getattr(arguments, "out", None)
        where = "" if name is None else f"{os.fsdecode(name)}: "
        remedy = " Pass --overwrite to replace it." if isinstance(error, FileExistsError) else ""
        return f"{where}{error.strerror}.{remedy}"
    if isinstance(error, pg.FormatError):
        where = "" if error.path is None or error.path in str(error) else f"{error.path}: "
        offset = "" if error.offset is None else f" (byte {error.offset})"
        return f"{where}{error}{offset}"
    return str(error) or "out of memory."


def _complain(sentence: str, *, after_output: bool = False) -> None:
    # An answer may have been cut off in the middle of its line.
    start = "\n" if after_output and sys.stderr.isatty() else ""
    with suppress(OSError):
        sys.stderr.write(f"{start}phiggml: {printable(sentence.replace(chr(10), ' '))}\n")


def _discard_output_if_stuck() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _discard_output()


def _discard_output() -> None:
    """Sends what is left of stdout nowhere, so that the interpreter's own flush does not fail."""
    with suppress(OSError, ValueError):
        target = os.open(os.devnull, os.O_WRONLY)
        os.dup2(target, sys.stdout.fileno())
        os.close(target)
