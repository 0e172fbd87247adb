"""Backends that are distributions of their own: which are installed, and which of them fit."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from phiggml import _core

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

__all__ = ["GROUP", "Plugin", "absent_plugins", "installed_plugins"]

GROUP = "phiggml.backends"
"""The entry points by which a distribution says that it holds a backend: NAME = PACKAGE."""

_DESCRIPTION = "plugin.json"
_MOST_BYTES = 1 << 16
_CHOICE = "PHIGGML_BACKENDS"


@dataclass(frozen=True)
class Plugin:
    """A backend that is installed beside phiggml.

    Attributes:
        name: "cuda13", "vulkan" and so on.
        distribution: name and version of what brought it.
        library: its module; None where that cannot be used.
        fault: why not, and what to do, in sentences.
        needs: NVIDIA's libraries that the module is linked to, by cuda-pathfinder's names.
    """

    name: str
    distribution: str
    library: Path | None
    fault: str = ""
    needs: tuple[str, ...] = ()


def _points() -> EntryPoints:
    from importlib.metadata import entry_points  # which takes longer than the rest of an import

    return entry_points(group=GROUP)


def _wanted() -> frozenset[str] | None:
    """The names in PHIGGML_BACKENDS; None where all are wanted."""
    choice = os.environ.get(_CHOICE)
    if choice is None:
        return None
    names = frozenset(name.strip() for name in choice.split(","))
    return names - {"", "none"}


def installed_plugins() -> list[Plugin]:
    """Finds the installed backends, by name; runs nothing of theirs.

    Returns:
        One Plugin for each; those that PHIGGML_BACKENDS leaves out have a fault that says so.

    Cost:
        Looks through the metadata of all installed distributions.
    """
    wanted = _wanted()
    found = {point.name: point for point in _points()}
    return [
        _plugin(point)
        if wanted is None or name in wanted
        else Plugin(name, _distribution(point), None, f"{_CHOICE} leaves it out.")
        for name, point in sorted(found.items())
    ]


def absent_plugins() -> list[str]:
    """Names in PHIGGML_BACKENDS that are not installed."""
    installed = {point.name for point in _points()}
    return sorted((_wanted() or frozenset()) - installed)


def _distribution(point: EntryPoint) -> str:
    return "" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _plugin(point: EntryPoint) -> Plugin:
    distribution = _distribution(point)
    try:
        library, needs = _library(point.value)
    except _FaultError as error:
        return Plugin(point.name, distribution, None, str(error))
    return Plugin(point.name, distribution, library, needs=needs)


class _FaultError(Exception):
    """Why a plugin cannot be used."""


def _library(package: str) -> tuple[Path, tuple[str, ...]]:
    """A plugin's module, and what that needs."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise _FaultError(f"its package {package!r} is not there. Install it again.")
    folder = Path(spec.origin).parent
    try:
        with (folder / _DESCRIPTION).open("rb") as file:
            description = json.loads(file.read(_MOST_BYTES))
        build_id, name = str(description["build_id"]), str(description["library"])
        needs = tuple(str(library) for library in description.get("needs", []))
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise _FaultError(f"{folder / _DESCRIPTION} cannot be read. Install it again.") from error
    if build_id != _core.runtime.build_id():
        raise _FaultError(
            f"it was built for another phiggml (build {build_id}, not "
            f"{_core.runtime.build_id()}). Install both in the same version."
        )
    if Path(name).name != name or not (folder / name).is_file():
        raise _FaultError(f"its module {name!r} is not in {folder}. Install it again.")
    return folder / name, needs
