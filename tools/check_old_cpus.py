"""Whether phiggml runs on older x86-64 CPUs, emulated: qemu knows no instruction that they lack.

python tools/check_old_cpus.py [--write]    (of the phiggml that this Python has installed)
Needs qemu-x86_64 (Debian: qemu-user). On each CPU: arrays, the demo checkpoint to Q4_K_M and an
answer; the module chosen must be the one for that CPU. --write: into docs/variants.md.
numpy has demands of its own: from 2.4 it refuses CPUs before Nehalem; 1.26 runs on all of these.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "variants.md"
# qemu's name of a CPU, its year, and the module for it. qemu 7.2 emulates no AVX-512.
CPUS = {
    "core2duo": (2006, "x64"),
    "Penryn": (2008, "x64"),
    "Nehalem": (2008, "sse42"),
    "SandyBridge": (2011, "sandybridge"),
    "IvyBridge": (2012, "ivybridge"),
    "Opteron_G5": (2012, "piledriver"),
    "Haswell": (2013, "haswell"),
}
# qemu 7.2 reads the wrong numbers with vgatherdps where its index is in ymm4, as in our IQ3_S.
ARRAYS = "Q4_0 Q8_0 Q4_K Q6_K"
GATHERED = "IQ4_XS IQ3_S IQ2_S"
PROGRAM = """
import json, pathlib, sys, tempfile, numpy as np, phiggml as pg
from phiggml import _core
from phiggml.cli_demo import demo_checkpoint
x = np.random.default_rng(0).standard_normal((4, 512), dtype=np.float32)
for type in sys.argv[1:]:
    pg.quantize(x, type).dequantize()
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "nano.gguf"
    pg.convert(demo_checkpoint(), path, "Q4_K_M", threads=1)
    with pg.Session(path, threads=1, n_ctx=256) as session:
        greedy = pg.Sampling(temperature=0)
        ask = [{"role": "user", "content": "What is GGUF?"}]
        text = session.chat(ask, max_tokens=120, sampling=greedy).text
print(json.dumps([pathlib.Path(_core.runtime.cpu_module()).name, text]))
"""


def answer() -> str:
    """What the demo checkpoint learned to say."""
    text = (ROOT / "examples" / "phi3-nano" / "questions.json").read_text("utf-8")
    [known] = [entry for entry in json.loads(text) if entry["question"] == "What is GGUF?"]
    return str(known["answer"])


def fault(cpu: str, module: str) -> str:
    """Why an emulated CPU does not do, or nothing."""
    types = ARRAYS if module == "haswell" else f"{ARRAYS} {GATHERED}"
    command = ["qemu-x86_64", "-cpu", cpu, sys.executable, "-c", PROGRAM, *types.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip().rpartition("\n")[2] or f"ends with status {done.returncode}"
    chosen, text = json.loads(done.stdout)
    if chosen != f"libggml-cpu-{module}.so":
        return f"{chosen} is chosen, not libggml-cpu-{module}.so"
    return "" if text.strip() == answer() else f"it answers {text!r}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    version = subprocess.run(
        ["qemu-x86_64", "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    lines = [
        f"    {version}, numpy {np.__version__}, Python {platform.python_version()}",
        "",
        "| emulated CPU | from | module chosen | demo checkpoint |",
        "| --- | --- | --- | --- |",
    ]
    n_faults = 0
    for cpu, (year, module) in CPUS.items():
        said = fault(cpu, module)
        n_faults += bool(said)
        lines.append(f"| {cpu} | {year} | {module} | {said or 'converts and answers'} |")
        print(lines[-1], flush=True)
    if arguments.write:
        sys.path.append(str(ROOT / "benchmarks"))
        from page import write_between

        write_between(PAGE, "tools/check_old_cpus.py", "\n".join(lines))
    return int(n_faults > 0)


if __name__ == "__main__":
    sys.exit(main())
