"""Opens hostile GGUF files in one process, and touches all that they hold. Prints a line of JSON
for each, as it goes: after a death, the last one says where.

    python hostile_reader.py cases FOLDER GOOD.gguf    every file of the folder, from each source
    python hostile_reader.py large FOLDER GOOD.gguf    the same without touching what is large
    python hostile_reader.py truncations FILE          FILE cut behind each of its bytes
    python hostile_reader.py flips FILE END VALUES     bytes 0 ... END, each with other values
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from phiggml.errors import FormatError, PhiggmlError, UnsupportedError
from phiggml.gguf import GGUFFile, GGUFStrings, GGUFTensor

Verdict = dict[str, Any]
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def touch(source: Any, *, large: bool = False) -> None:
    """Opens a file. What it says must hold: nothing that is handed out may lie outside of it."""
    with GGUFFile(source) as file:
        repr(file)
        for key in file.metadata:
            if not large:
                touch_value(file, key)
        for tensor in file.tensors.values():
            assert tensor.offset >= file.data_offset
            assert tensor.offset + tensor.nbytes <= file.nbytes
            row_bytes = tensor.type.row_bytes((1, *tensor.shape)[-1])
            assert tensor.nbytes == tensor.n_rows * row_bytes
            if not large:
                touch_tensor(file, tensor)


def touch_value(file: GGUFFile, key: str) -> None:
    value = file.metadata[key]
    repr(value)
    file.metadata.exact(key)
    file.metadata.encoded(key)
    if isinstance(value, GGUFStrings):
        texts = list(value)
        assert len(texts) == len(value)
        assert [value[i] for i in range(-min(3, len(texts)), 0)] == texts[-3:]


def touch_tensor(file: GGUFFile, tensor: GGUFTensor) -> None:
    repr(tensor)
    try:
        data = tensor.data
    except UnsupportedError:
        assert file.byte_order == "big"  # nobody has said how blocks of that type are swapped
        return
    assert data.nbytes == tensor.nbytes
    assert int(data.sum()) == int(tensor.read_rows().sum())
    with contextlib.suppress(PhiggmlError):  # of types that nothing turns into numbers
        assert tensor.dequantize().shape == tensor.shape


def judge(source: Any, *, large: bool = False) -> Verdict:
    started = time.process_time()
    verdict: Verdict = {"outcome": "accepted"}
    try:
        touch(source, large=large)
    except FormatError as error:
        verdict = {
            "outcome": "FormatError",
            "message": str(error),
            "offset": error.offset,
            "path": error.path,
        }
    except Exception as error:  # noqa: BLE001 (whatever else it is, the test names it)
        verdict = {"outcome": type(error).__name__, "message": str(error)}
    return verdict | {"seconds": time.process_time() - started}


def peak_megabytes() -> float:
    # Not ru_maxrss where it can be helped: on Linux that begins with what the parent had.
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def forget_peak() -> None:
    """The peak of memory becomes what is used now, where Linux allows it."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")


def report(name: object, verdict: Verdict) -> None:
    print(json.dumps(verdict | {"name": name}), flush=True)


def sources(path: Path, *, large: bool) -> dict[str, Callable[[], Any]]:
    """What a file can be read from."""
    found: dict[str, Callable[[], Any]] = {"path": lambda: path, "stream": lambda: path.open("rb")}
    if not large:
        found |= {"bytes": path.read_bytes, "bytes stream": lambda: io.BytesIO(path.read_bytes())}
    return found


def judge_folder(folder: Path, good: Path, *, large: bool) -> None:
    for path in sorted(folder.iterdir()):
        for kind, source in sources(path, large=large).items():
            opened = source()
            forget_peak()
            before = peak_megabytes()
            verdict = judge(opened, large=large)
            verdict["megabytes"] = peak_megabytes() - before
            if isinstance(opened, io.IOBase):
                opened.close()
            touch(good)  # the process goes on working
            report([path.name, kind], verdict)


def judge_truncations(path: Path) -> None:
    content = path.read_bytes()
    for size in range(len(content) - 1, -1, -1):
        with path.open("r+b") as stream:
            stream.truncate(size)
        verdict = judge(path)
        from_bytes = judge(content[:size])
        assert from_bytes["outcome"] == verdict["outcome"], (size, verdict, from_bytes)
        report(size, verdict)
    report("peak", {"megabytes": peak_megabytes()})


def flips(content: bytes, end: int, values: str) -> Iterator[tuple[int, int]]:
    """Positions and other values: all 255 of them, or single bits, 0 and 255."""
    for i in range(end):
        if values == "all":
            others = set(range(256))
        else:
            others = {content[i] ^ (1 << bit) for bit in range(8)} | {0, 255}
        for value in sorted(others - {content[i]}):
            yield i, value


def judge_flips(path: Path, end: int, values: str) -> None:
    """A line of JSON for each byte: how each of its values ended, and the slowest."""
    content = path.read_bytes()
    counts: dict[int, Verdict] = {}
    for i, value in flips(content, end, values):
        verdict = judge(content[:i] + bytes([value]) + content[i + 1 :])
        outcome = verdict["outcome"]
        if outcome == "FormatError" and not 0 <= verdict["offset"] <= len(content):
            outcome = "offset outside"
        count = counts.setdefault(i, {"seconds": 0.0})
        count["seconds"] = max(count["seconds"], verdict["seconds"])
        count[outcome] = count.get(outcome, 0) + 1
        if outcome not in ("FormatError", "accepted"):
            count["example"] = [value, verdict]
    for i, count in counts.items():
        report(i, count)
    report("whole", judge(content) | {"megabytes": peak_megabytes()})


def main() -> None:
    # Who takes more than this gets MemoryError; the machine is spared.
    resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))
    command, path = sys.argv[1], Path(sys.argv[2])
    if command in ("cases", "large"):
        judge_folder(path, Path(sys.argv[3]), large=command == "large")
    elif command == "truncations":
        judge_truncations(path)
    else:
        judge_flips(path, int(sys.argv[3]), sys.argv[4])


if __name__ == "__main__":
    main()
