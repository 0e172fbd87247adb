"""Editing in place: files with room, and what a kill at any page of any write leaves."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gguf_bytes as gb
from edited_files import (
    DATA,
    TOKENS,
    pairs,
    room,
    tensors,
    text,
)
from gguf_seen import PADDING, Seen, seen, without_padding
from phiggml.errors import FormatError, InputError
from phiggml.gguf import GGUFFile, GGUFWriter
from phiggml.gguf_edit import GGUFEdit, edit_gguf


@pytest.fixture
def padded(tmp_path: Path) -> Path:
    path = tmp_path / "padded.gguf"
    path.write_bytes(gb.gguf([room(9000), *pairs()], tensors(), DATA))
    return path


def check_padded(path: Path, before: Seen, request: dict[str, Any], *, in_place: bool) -> Seen:
    """One edit of a file with room, compared with what it must do to what the gguf package sees."""
    inode, size = path.stat().st_ino, path.stat().st_size
    done = edit_gguf(path, **request)
    after = seen(path)
    wanted = before.metadata()
    for key in request.get("unset", ()):
        del wanted[key]
    wanted |= request.get("set", {})
    assert after.metadata() == wanted
    assert after.tensors == before.tensors
    assert done.in_place == in_place == (path.stat().st_ino == inode)
    if in_place:
        assert path.stat().st_size == size
    return after


def test_with_room_everything_is_in_place(padded: Path) -> None:
    state = seen(padded)
    template = "{% for message in messages %}" * 100
    for request in (
        {"set": {"general.name": "A model"}},
        {"set": {"general.name": "A model of another name"}},
        {"set": {"general.name": "Short"}},
        {"unset": ["general.name"]},
        {"set": {"general.architecture": "phi3small"}},
        {"set": {"general.architecture": "phi", "x": 1, "y": [1.5, 2.5]}},
        {"set": {"tokenizer.chat_template": template}},
        {"set": {"tokenizer.chat_template": template + "!"}},
        {"set": {"tokenizer.chat_template": template[:50]}},
        {"unset": ["x", "y"]},
        {"unset": ["tokenizer.chat_template"]},
    ):
        state = check_padded(padded, state, request, in_place=True)
    with GGUFFile(padded) as f:
        assert len(f.metadata[PADDING]) + sum(len(v) for v in ("phi",)) == 9000 + len("phi3")
        assert f.metadata[PADDING].isspace()


def test_padding_behind_a_long_text_that_changes(padded: Path) -> None:
    """It goes before the text, whose new bytes lie in what was padding, as what is added does."""
    content = gb.gguf([text("a", "b"), text("long", "x" * 9000), room(40_000)])
    for changes in ({"long": "y" * 9001}, {"long": "y" * 9001, "new": "z" * 9000}):
        padded.write_bytes(content)
        check_padded(padded, seen(padded), {"set": changes}, in_place=True)


def test_padding_before_other_lengths_and_long_additions(padded: Path) -> None:
    """All that was behind it goes before it, and so does what is new."""
    padded.write_bytes(gb.gguf([room(50_000), *pairs()], tensors(), DATA))
    request = {"set": {"last": "a longer end", "new": "z" * 9000}}
    check_padded(padded, seen(padded), request, in_place=True)


def test_room_that_does_not_suffice(padded: Path) -> None:
    state = seen(padded)
    state = check_padded(padded, state, {"set": {"new": "x" * 9500}}, in_place=False)
    state = check_padded(padded, state, {"unset": ["new"]}, in_place=False)
    check_padded(padded, state, {"set": {"new": "x" * 8900}}, in_place=True)
    with GGUFFile(padded) as f:
        assert len(f.metadata[PADDING]) == 9000 - 8 - len("new") - 4 - 8 - 8900


def test_room_can_be_given_up_and_not_be_set(padded: Path) -> None:
    for request in (
        {"set": {PADDING: 1}},
        {"rename": {PADDING: "x"}},
        {"rename": {"flag": PADDING}},
    ):
        with pytest.raises(InputError, match="room"):
            edit_gguf(padded, **request)
    assert not edit_gguf(padded, unset=[PADDING]).in_place
    assert padded.read_bytes() == gb.gguf(pairs(), tensors(), DATA)


def states_of(
    path: Path, edit: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> list[bytes]:
    """What a kill during the edit could leave: each write may stop at each page."""
    states: list[bytes] = []
    written = os.pwrite

    def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        before, end = path.read_bytes(), offset + len(data)
        for stop in [*range(-(-offset // 4096) * 4096, end, 4096), end]:
            states.append(
                before[:offset] + bytes(data[: stop - offset]) + before[max(stop, offset) :]
            )
        return written(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        edit()
    return states


EDITS: list[dict[str, Any]] = [
    {"set": {"a.count": 8}},
    {"set": {"general.architecture": "a longer text", "new": "y" * 5000}},
    {"unset": ["flag"], "set": {"last": "e"}},
    {"set": {"tokens": TOKENS[::-1]}},
]


@pytest.mark.parametrize("request_", EDITS)
def test_an_open_file_reads_the_old_values_or_says_that_it_has_changed(
    padded: Path, monkeypatch: pytest.MonkeyPatch, request_: dict[str, Any]
) -> None:
    padded.write_bytes(gb.gguf([room(60_000), *pairs()], tensors(), DATA))
    os.utime(padded, (1, 1))  # clocks of file systems are coarse
    old = seen(padded).metadata()
    old_bytes = padded.read_bytes()
    outcomes: list[str] = []
    written = os.pwrite

    def look(file: GGUFFile) -> None:
        for key in old:
            try:
                value = file.metadata[key]
                value = value.tolist() if isinstance(value, np.ndarray) else value
                encoded = file.metadata.encoded(key)
            except FormatError as error:
                assert "has changed" in str(error)
                outcomes.append("changed")
            else:
                assert value == old[key]
                assert encoded in old_bytes
                outcomes.append("old")

    with GGUFFile(padded) as file:
        views = file.metadata["numbers"]

        def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
            look(file)
            nbytes = written(descriptor, data, offset)
            look(file)
            return nbytes

        monkeypatch.setattr(os, "pwrite", pwrite)
        assert edit_gguf(padded, **request_).in_place
        look(file)
        assert views.tolist() == old["numbers"]
    assert outcomes[: len(old)] == ["old"] * len(old)
    assert outcomes[-len(old) :] == ["changed"] * len(old)


def random_request(rng: np.random.Generator, keys: Sequence[str]) -> dict[str, Any]:
    """One to three changes: additions, removals, other lengths."""
    own = [key for key in keys if key.startswith("own.")]
    request: dict[str, Any] = {"set": {}, "unset": []}
    for _ in range(int(rng.integers(1, 4))):
        kind = int(rng.integers(0, 5))
        if kind == 0 and own:
            request["unset"].append(own.pop(int(rng.integers(len(own)))))
        elif kind == 1 and own:
            key = own.pop(int(rng.integers(len(own))))
            request["set"][key] = "y" * int(rng.integers(0, 1000))
        elif kind == 2:
            request["set"]["a.count"] = int(rng.integers(0, 1000))
        elif kind == 3:
            request["set"]["general.architecture"] = "phi" * int(rng.integers(1, 20))
        else:
            request["set"][f"own.{rng.integers(1000, 2000)}"] = "x" * int(rng.integers(0, 1000))
    request["unset"] = [key for key in request["unset"] if key not in request["set"]]
    return request


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_at_any_page_of_any_write(
    padded: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    padded.write_bytes(gb.gguf([room(4000), *pairs()], tensors(), DATA))
    rng = np.random.default_rng(seed)
    before = seen(padded)
    n_in_place = n_states = 0
    for _ in range(40):
        old = padded.read_bytes()
        request = random_request(rng, list(before.metadata()))
        done: list[GGUFEdit] = []
        states = states_of(padded, lambda: done.append(edit_gguf(padded, **request)), monkeypatch)  # noqa: B023
        after = seen(padded)
        wanted = {k: v for k, v in before.metadata().items() if k not in request["unset"]}
        assert after.metadata() == wanted | request["set"]
        assert after.tensors == before.tensors
        before = after
        n_in_place += done[0].in_place
        n_states += len(states)
        whole = {without_padding(content) for content in (old, padded.read_bytes())}
        assert {without_padding(state) for state in states} <= whole
    assert n_in_place >= 20
    assert n_states >= 40


def test_a_large_file_of_the_writers_is_edited_in_place(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    with GGUFWriter(path) as w:
        w.metadata["general.architecture"] = "phi3"
        w.metadata["tokens"] = TOKENS * 20
        for i in range(5):
            w.add_tensor(f"t{i}", np.full((1024, 4096), i, np.float32))
    with GGUFFile(path) as f:
        assert next(iter(f.metadata)) == PADDING
    for request in (
        {"general.name": "new"},
        {"general.name": "longer"},
        {"tokenizer.chat_template": "x" * 60_000},
        {"tokenizer.chat_template": "x" * 60_001},
        {"general.architecture": "phimoe"},
    ):
        assert edit_gguf(path, set=request).in_place
    with GGUFFile(path) as f:
        assert f.metadata["general.name"] == "longer"
        assert f.metadata["general.architecture"] == "phimoe"
        assert len(f.metadata["tokenizer.chat_template"]) == 60_001
        assert f.metadata["tokens"] == TOKENS * 20
        for i in range(5):
            assert np.all(f.tensors[f"t{i}"].dequantize() == i)
