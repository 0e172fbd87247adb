"""Runs llama_model_quantize of a llama library in a process of its own.

Its argument is a JSON file: {"library": path, "jobs": [{"source", "out", "file_type", and
optionally "imatrix" (.npz), "overrides" [[expression, type id]], "pure", "quantize_output",
"allow_requantize", "keep_split", "output_type", "embedding_type", "metadata" [[key, value]]}]}.
A job that fails leaves no file.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

NO_TYPE_OPTIONS = ("output_type", "embedding_type")
INTEGER, TEXT = 0, 3
ERROR = 4


class Imatrix(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    ]


class Override(ctypes.Structure):
    _fields_ = [("pattern", ctypes.c_char_p), ("type", ctypes.c_int)]


class Value(ctypes.Union):
    _fields_ = [("number", ctypes.c_int64), ("text", ctypes.c_char * 128)]


class Pair(ctypes.Structure):
    """struct llama_model_kv_override of llama.h."""

    _fields_ = [("tag", ctypes.c_int), ("key", ctypes.c_char * 128), ("value", Value)]


class Params(ctypes.Structure):
    """struct llama_model_quantize_params of llama.h, b11549."""

    _fields_ = [
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int),
        ("output_type", ctypes.c_int),
        ("embedding_type", ctypes.c_int),
        ("allow_requantize", ctypes.c_bool),
        ("quantize_output", ctypes.c_bool),
        ("only_copy", ctypes.c_bool),
        ("pure", ctypes.c_bool),
        ("keep_split", ctypes.c_bool),
        ("dry_run", ctypes.c_bool),
        ("imatrix", ctypes.POINTER(Imatrix)),
        ("kv_overrides", ctypes.POINTER(Pair)),
        ("overrides", ctypes.POINTER(Override)),
        ("prune_layers", ctypes.c_void_p),
        ("max_buf_size", ctypes.c_size_t),
    ]


def pairs_of(metadata: list[tuple[str, int | str]]) -> ctypes.Array[Pair]:
    pairs = (Pair * (len(metadata) + 1))()
    for pair, (key, value) in zip(pairs, metadata, strict=False):
        pair.key = key.encode()
        if isinstance(value, int):
            pair.tag, pair.value.number = INTEGER, value
        else:
            pair.tag, pair.value.text = TEXT, value.encode()
    return pairs


def quantize(library: ctypes.CDLL, job: dict[str, Any]) -> None:
    params = library.llama_model_quantize_default_params()
    # A wrong layout of the structure above would show here.
    assert (params.quantize_output, params.pure, params.max_buf_size) == (True, False, 8 << 30)
    params.nthread = 1
    params.ftype = job["file_type"]
    for option in (*NO_TYPE_OPTIONS, "pure", "quantize_output", "allow_requantize", "keep_split"):
        if option in job:
            setattr(params, option, job[option])
    if "imatrix" in job:
        arrays = {
            name: np.ascontiguousarray(a.ravel()) for name, a in np.load(job["imatrix"]).items()
        }
        entries = (Imatrix * (len(arrays) + 1))()
        for entry, (name, array) in zip(entries, arrays.items(), strict=False):
            entry.name = name.encode()
            entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = array.size
        params.imatrix = entries
    if "overrides" in job:
        overrides = (Override * (len(job["overrides"]) + 1))()
        for override, (pattern, type_id) in zip(overrides, job["overrides"], strict=False):
            override.pattern, override.type = pattern.encode(), type_id
        params.overrides = overrides
    if "metadata" in job:
        params.kv_overrides = pairs_of(job["metadata"])
    source, out = job["source"].encode(), job["out"].encode()
    if library.llama_model_quantize(source, out, ctypes.byref(params)) != 0:
        Path(job["out"]).unlink(missing_ok=True)


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def log_errors(level: int, text: bytes, _: object) -> None:
    if level == ERROR:
        sys.stderr.buffer.write(text)


def require_nothing_of_ours() -> None:
    """The kernels that are compared with it are in _core, and are not to answer here."""
    assert "phiggml" not in sys.modules
    maps = Path("/proc/self/maps")
    if maps.exists():
        loaded = {line.rpartition("/")[2] for line in maps.read_text("utf-8").splitlines()}
        assert not [name for name in loaded if name.startswith("_core.")]


def main() -> None:
    work = json.loads(Path(sys.argv[1]).read_text())
    library = ctypes.CDLL(work["library"])
    library.llama_model_quantize_default_params.restype = Params
    library.llama_model_quantize.restype = ctypes.c_uint32
    library.llama_log_set(log_errors, None)
    library.llama_backend_init()
    for job in work["jobs"]:
        quantize(library, job)
    require_nothing_of_ours()


if __name__ == "__main__":
    main()
