"""Distributions that look like plugins, with modules that a C compiler makes in a moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phiggml import _core
from phiggml.runtime import library_folder

LIST = """
import json, logging
warned = []
handler = logging.Handler()
handler.emit = lambda record: warned.append(record.getMessage())
logging.getLogger("phiggml").addHandler(handler)
import phiggml as pg
from phiggml.runtime import load_backends
found = {b.name: [b.distribution, b.loaded, b.reason] for b in load_backends()}
print(json.dumps([found, [d.kind for d in pg.devices()], warned]))
"""

# What ggml asks of a module, as ggml-backend-impl.h has it: version 3, a name, a number of devices.
MODULE = """
struct backend {
    int version;
    const char *(*name)(struct backend *);
    unsigned long (*device_count)(struct backend *);
    void *(*device)(struct backend *, unsigned long);
    void *(*function)(struct backend *, const char *);
    void *context;
};
void ggml_log_internal(int level, const char *format, ...);
static const char *name(struct backend *b) { (void) b; return "made-up"; }
static unsigned long no_devices(struct backend *b) {
    const char *complaint = "%s";
    if (*complaint) {
        ggml_log_internal(4, "init: failed to initialize: %%s\\n", complaint);
    }
    (void) b;
    return 0;
}
static struct backend made_up = {3, name, no_devices, 0, 0, 0};
struct backend *ggml_backend_init(void) { return &made_up; }
"""


def install(folder: Path, name: str, description: Mapping[str, Any] | bytes | None) -> Path:
    """The package of a distribution with an entry point, as pip would leave both."""
    info = folder / f"phiggml_{name}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: phiggml-{name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[phiggml.backends]\n{name} = phiggml_{name}\n")
    package = folder / f"phiggml_{name}"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('nobody imports a plugin')\n")
    if description is not None:
        text = description if isinstance(description, bytes) else json.dumps(description).encode()
        (package / "plugin.json").write_bytes(text)
    return package


def described(
    library: str, build_id: str | None = None, needs: Sequence[str] = ()
) -> dict[str, Any]:
    current = _core.runtime.build_id() if build_id is None else build_id
    return {"name": "x", "build_id": current, "library": library, "needs": list(needs)}


def compiled(library: Path, source: str, *linked: Path, soname: str = "") -> Path:
    """A library from a little C, linked to others."""
    library.parent.mkdir(exist_ok=True)
    command = ["cc", "-shared", "-fPIC", "-w", "-x", "c", "-", "-o", str(library), "-x", "none"]
    command += [f"-Wl,-soname,{soname or library.name}", "-Wl,--no-as-needed", *map(str, linked)]
    subprocess.run(command, input=source, text=True, check=True)
    return library


def made_up_backend(library: Path, *linked: Path, complaint: str = "") -> Path:
    """A module that ggml loads, without a device."""
    base = library_folder() / "libphiggml-ggml-base.so"
    return compiled(library, MODULE % complaint, base, *linked)


def loaded(folder: Path, **environment: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """What a process with these distributions says of backends, kinds of devices and warnings."""
    done = subprocess.run(
        [sys.executable, "-c", LIST],
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    backends, kinds, warned = json.loads(done.stdout)
    return backends, kinds, warned
