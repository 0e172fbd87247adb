"""Backends that are distributions of their own: found, refused with a sentence, chosen by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from made_up_plugins import MODULE, compiled, described, install, loaded, made_up_backend
from phiggml.runtime import library_folder


def test_a_plugin_that_cannot_be_used_says_why_and_the_cpu_goes_on(tmp_path: Path) -> None:
    (install(tmp_path, "broken", described("libggml-broken.so")) / "libggml-broken.so").write_bytes(
        b"no library" * 100
    )
    install(tmp_path, "stale", described("libggml-stale.so", "0123456789ab"))
    install(tmp_path, "empty", None)
    install(tmp_path, "odd", b"[1, 2")
    install(tmp_path, "needy", b'{"build_id": "0", "library": "x", "needs": 5}')
    install(tmp_path, "gone", described("libggml-gone.so"))
    install(tmp_path, "outside", described("../broken/libggml-broken.so"))
    shutil.rmtree(install(tmp_path, "removed", described("x.so")))
    backends, kinds, warned = loaded(tmp_path)
    expected = {
        "broken": "invalid ELF header",
        "stale": "built for another phiggml (build 0123456789ab",
        "empty": "plugin.json cannot be read. Install it again.",
        "odd": "plugin.json cannot be read. Install it again.",
        "needy": "plugin.json cannot be read. Install it again.",
        "gone": "'libggml-gone.so' is not in",
        "outside": "is not in",
        "removed": "its package 'phiggml_removed' is not there",
    }
    for name, sentence in expected.items():
        distribution, is_loaded, reason = backends[name]
        assert (distribution, is_loaded) == (f"phiggml-{name} 0.1.0", False)
        if name != "broken" or sys.platform == "linux":
            assert sentence in reason
        assert any(line.startswith(f"backend {name}: ") for line in warned)
    assert "cpu" in kinds


@pytest.mark.parametrize(
    ("choice", "states"),
    [
        ("none", {"one": "leaves it out", "two": "leaves it out"}),
        ("", {"one": "leaves it out", "two": "leaves it out"}),
        ("two", {"one": "leaves it out", "two": "is not in"}),
        (" two , one", {"one": "is not in", "two": "is not in"}),
        ("two,none-such", {"one": "leaves it out", "two": "is not in",
                           "none-such": "backends are cuda13, cuda12, vulkan"}),
        ("all", {"one": "is not in", "two": "is not in"}),
        ("ONE,rocm", {"one": "is not in", "two": "leaves it out",
                      "rocm": "pip install phiggml-rocm."}),
    ],
)  # fmt: skip
def test_backends_are_chosen_by_name(tmp_path: Path, choice: str, states: dict[str, str]) -> None:
    for name in ("one", "two"):
        install(tmp_path, name, described(f"libggml-{name}.so"))
    backends, kinds, _ = loaded(tmp_path, PHIGGML_BACKENDS=choice)
    names = {"one", "two", "none-such", "all", "ONE", "rocm"}
    ours = {name: state for name, state in backends.items() if name in names}
    assert ours.keys() == states.keys()
    for name, sentence in states.items():
        assert sentence in ours[name][2]
    assert "cpu" in kinds


def entry(folder: Path, name: str, text: str | bytes) -> None:
    """What entry_points.txt of an installed distribution says."""
    file = folder / f"phiggml_{name}-0.1.0.dist-info" / "entry_points.txt"
    file.write_bytes(text.encode() if isinstance(text, str) else text)


@pytest.mark.skipif(sys.platform != "linux", reason="names and files as Linux takes them")
def test_whatever_a_plugin_is_the_cpu_goes_on(tmp_path: Path) -> None:
    for package in ("__main__", "sys", "no.dots", "no_such"):
        install(tmp_path, package, described("x.so"))
        entry(tmp_path, package, f"[phiggml.backends]\n{package} = {package}\n")
    for name, needs in {"text": '"cudart"', "numbers": "[1]", "slashes": '["../../x"]'}.items():
        description = json.dumps(described("x.so")).replace("[]", needs).encode()
        made_up_backend(install(tmp_path, name, description) / "x.so")
    (install(tmp_path, "folder", None) / "plugin.json").mkdir()
    install(tmp_path, "huge", b'{"build_id": "' + b"a" * 100_000 + b'"}')
    install(tmp_path, "odd_id", described("x.so", "\x1b[31m\n"))
    install(tmp_path, "long", described(3000 * "x"))
    install(tmp_path, "up", described(".."))
    whole = made_up_backend(install(tmp_path, "cut", described("x.so")) / "x.so").read_bytes()
    (tmp_path / "phiggml_cut" / "x.so").write_bytes(whole[: len(whole) // 2])
    install(tmp_path, "twice", described("x.so"))
    install(tmp_path, "again", described("x.so"))
    entry(tmp_path, "again", "[phiggml.backends]\ntwice = phiggml_again\n")
    install(tmp_path, "nameless", described("x.so"))
    (tmp_path / "phiggml_nameless-0.1.0.dist-info" / "METADATA").write_bytes(b"Name: \xff")
    (tmp_path / "plugin.json").write_text("what `sys` would read from the current folder")
    backends, kinds, warned = loaded(tmp_path)
    expected = {
        **dict.fromkeys(("__main__", "sys", "no.dots", "no_such"), "' is not there. Install"),
        **dict.fromkeys(("text", "numbers", "slashes", "folder", "huge", "odd_id"), "be read. In"),
        "long": "is not in",
        "up": "is not in",
        "nameless": "is not in",
        "cut": "its module 'x.so' is cut off. Install it again.",
        "twice": " has a backend of this name, too. Uninstall one.",
    }
    for name, sentence in expected.items():
        assert backends[name][1] is False and sentence in backends[name][2], (name, backends[name])
    assert sum(line.startswith("backend twice: ") for line in warned) == 2
    assert "cpu" in kinds


@pytest.mark.parametrize("damage", [b"[phiggml.backends]\nno value\n", b"[x]\n\xff = y\n"])
def test_damaged_metadata_costs_no_other_plugin(tmp_path: Path, damage: bytes) -> None:
    install(tmp_path, "damaged", described("x.so"))
    entry(tmp_path, "damaged", damage)
    install(tmp_path, "stale", described("x.so", "0123456789ab"))
    backends, kinds, warned = loaded(tmp_path)
    assert "built for another phiggml" in backends["stale"][2] and "damaged" not in backends
    assert "cpu" in kinds
    assert any(f"a package in {tmp_path}" in line for line in warned)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux takes any bytes as a path")
def test_a_folder_whose_name_is_no_text_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "\udcff"
    folder.mkdir()
    made_up_backend(install(folder, "byte", described("x.so")) / "x.so")
    backends, kinds, _ = loaded(folder)
    assert "this path is not UTF-8. Move it." in backends["byte"][2]
    assert "cpu" in kinds


THREADS_AND_FORK = """
import logging, os, signal, sys, threading, time
import phiggml as pg
handler = logging.Handler()
handler.emit = lambda record: pg.devices()
logging.getLogger("phiggml").addHandler(handler)
signal.alarm(20)
found = []
threads = [threading.Thread(target=lambda: found.append(pg.devices())) for _ in range(3)]
for thread in threads:
    thread.start()
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
child = os.fork()
if child == 0:
    signal.alarm(20)
    names = [device.name for device in pg.devices()]
    os._exit(0 if "CPU" in names and len(set(names)) == len(names) else 1)
status = os.waitpid(child, 0)[1]
for thread in threads:
    thread.join()
assert status == 0 and len(found) == 3 and found[0] == found[1] == found[2], (status, found)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_threads_and_a_child_wait_until_all_is_loaded(tmp_path: Path) -> None:
    """A fork in the middle of it, and a handler of the log that asks for devices."""
    begun = tmp_path / "begun"
    slow = """
    #include <fcntl.h>
    #include <unistd.h>
    __attribute__((constructor)) static void rest(void) {
        close(open("%s", O_CREAT | O_WRONLY, 0600));
        usleep(500000);
    }
    """
    base = library_folder() / "libphiggml-ggml-base.so"
    package = install(tmp_path, "slow", described("x.so"))
    compiled(package / "x.so", slow % begun + MODULE % "late", base)
    command = [sys.executable, "-c", f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"]
    command[-1] += THREADS_AND_FORK
    done = subprocess.run([*command, begun], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
