"""The locked versions are what pyproject.toml asks for; the oldest are its lower bounds."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
OF_USERS = ("dependencies", "hub", "remote", "plot")


def asked(field: str) -> list[Requirement]:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    [value] = re.findall(rf"^{field} = (\[.*\])$", text, re.MULTILINE)
    return [Requirement(line) for line in ast.literal_eval(value)]


def pinned(file: str) -> dict[str, list[Requirement]]:
    """By name; some have a version for each version of Python."""
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "requirements" / file).read_text("utf-8").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement = Requirement(line)
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def version(requirement: Requirement) -> Version:
    [specifier] = requirement.specifier
    assert specifier.operator == "=="
    return Version(specifier.version)


@pytest.mark.parametrize("field", ["dependencies", "test", "lint"])
def test_the_lock_has_what_is_asked_for(field: str) -> None:
    lock = pinned("development.txt")
    for requirement in asked(field):
        versions = [version(pin) for pin in lock[canonicalize_name(requirement.name)]]
        assert all(requirement.specifier.contains(v) for v in versions), requirement


@pytest.mark.parametrize("field", OF_USERS)
def test_the_oldest_are_the_lower_bounds(field: str) -> None:
    oldest = pinned("oldest.txt")
    for requirement in asked(field):
        [bound] = [s.version for s in requirement.specifier if s.operator == ">="]
        [pin] = oldest[canonicalize_name(requirement.name)]
        assert version(pin) == Version(bound), requirement
        assert pin.extras == requirement.extras
