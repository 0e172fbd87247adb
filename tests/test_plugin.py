"""Backends that are distributions of their own: found, refused with a sentence, chosen by name."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from made_up_plugins import described, install, loaded


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
                           "none-such": "pip install phiggml-none-such"}),
    ],
)  # fmt: skip
def test_backends_are_chosen_by_name(tmp_path: Path, choice: str, states: dict[str, str]) -> None:
    for name in ("one", "two"):
        install(tmp_path, name, described(f"libggml-{name}.so"))
    backends, kinds, _ = loaded(tmp_path, PHIGGML_BACKENDS=choice)
    ours = {name: state for name, state in backends.items() if name in {"one", "two", "none-such"}}
    assert ours.keys() == states.keys()
    for name, sentence in states.items():
        assert sentence in ours[name][2]
    assert "cpu" in kinds
