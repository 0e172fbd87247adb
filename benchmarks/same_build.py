"""Runs llama_model_quantize of the llama library that phiggml was built with, on all cores.

python benchmarks/same_build.py LIBRARY SOURCE.gguf OUT.gguf FILE_TYPE
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

# llama.cpp's structure of settings is declared where the tests have it.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from upstream_quantize import Params


def main() -> None:
    path, source, out, file_type = sys.argv[1:]
    library = ctypes.CDLL(path)
    library.llama_model_quantize_default_params.restype = Params
    library.llama_model_quantize.restype = ctypes.c_uint32
    library.llama_backend_init()
    params = library.llama_model_quantize_default_params()
    params.nthread = len(os.sched_getaffinity(0))
    params.ftype = int(file_type)
    names = source.encode(), out.encode()
    if library.llama_model_quantize(*names, ctypes.byref(params)) != 0:
        sys.exit(f"llama_model_quantize: {source}: it failed")


if __name__ == "__main__":
    main()
