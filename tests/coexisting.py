"""phiggml and xllamacpp, which carries a llama.cpp of its own, in one process: as a program.

    python coexisting.py PHIGGML.gguf XLLAMACPP.gguf STEP...

A step is the name of one of them: it is imported at its first step, loads its model anew at each,
and answers. All that a step makes is kept, so that later ones have it beside them. Prints JSON.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

PROMPT = "The old man walked to the river. The dog"
N_TOKENS = 8

kept: list[Any] = []
logged: list[str] = []


def phiggml(path: str) -> dict[str, Any]:
    """Logits of a prompt, of all earlier sessions too, and what follows greedily."""
    import phiggml as pg

    logger = logging.getLogger("phiggml")
    if not logger.handlers or logger.level != logging.DEBUG:
        handler = logging.Handler()
        handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    model = pg.Model(path, devices=[])
    kept.append(pg.Session(model, n_ctx=128, threads=1))
    tokens = model.tokenize(PROMPT)
    found = set()
    for session in kept:
        if isinstance(session, pg.Session):
            session.reset()
            found.add(hashlib.sha256(session.eval(tokens, logits="all").tobytes()).hexdigest())
    session = kept[-1]
    session.reset()
    sampling = pg.Sampling(temperature=0)
    text = session.generate(PROMPT, max_tokens=N_TOKENS, sampling=sampling).text
    return {"logits": sorted(found), "text": text}


def xllamacpp(path: str) -> dict[str, Any]:
    """What follows a prompt greedily, and the probabilities of the best tokens."""
    module = importlib.import_module("xllamacpp")
    settings = module.CommonParams()
    settings.model.path = path
    settings.n_ctx, settings.n_parallel, settings.warmup, settings.verbosity = 128, 1, False, 10
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    kept.append(module.Server(settings))
    request = {"prompt": PROMPT, "max_tokens": N_TOKENS, "temperature": 0, "logprobs": 20}
    answer = kept[-1].handle_completions(request)
    [choice] = (json.loads(answer) if isinstance(answer, str) else answer)["choices"]
    best = [[token["id"], token["top_logprobs"]] for token in choice["logprobs"]["content"]]
    digest = hashlib.sha256(json.dumps(best, sort_keys=True).encode()).hexdigest()
    return {"logits": [digest], "text": choice["text"]}


def libraries() -> dict[str, list[str]]:
    """Files of theirs and ours that this process has mapped."""
    lines = Path("/proc/self/maps").read_text("utf-8").splitlines()
    mapped = sorted({line.split(None, 5)[5] for line in lines if line.count("/")})
    return {
        name: [path for path in mapped if f"/{name}/" in path and ".so" in path]
        for name in ("phiggml", "xllamacpp")
    }


def log_callbacks() -> dict[str, str]:
    """The file in which each one's ggml finds the function that it logs with."""
    import phiggml as pg

    extension = importlib.import_module("xllamacpp.xllamacpp")
    bases = {
        "phiggml": str(Path(pg.get_library_dir()) / "libphiggml-ggml-base.so"),
        "xllamacpp": str(extension.__file__),
    }
    return {name: _file_of(_log_callback(ctypes.CDLL(path))) for name, path in bases.items()}


def _log_callback(library: ctypes.CDLL) -> int:
    callback, data = ctypes.c_void_p(), ctypes.c_void_p()
    library.ggml_log_get(ctypes.byref(callback), ctypes.byref(data))
    return callback.value or 0


def _file_of(address: int) -> str:
    for line in Path("/proc/self/maps").read_text("utf-8").splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= address < end:
            return line.split(None, 5)[5]
    return ""


def main(paths: dict[str, str], steps: list[str]) -> None:
    answers = [{"phiggml": phiggml, "xllamacpp": xllamacpp}[step](paths[step]) for step in steps]
    report: dict[str, Any] = {"answers": answers, "logged": logged, "libraries": libraries()}
    if len(set(steps)) == 2:
        report["log_callbacks"] = log_callbacks()
    print(json.dumps(report))


if __name__ == "__main__":
    main({"phiggml": sys.argv[1], "xllamacpp": sys.argv[2]}, sys.argv[3:])
