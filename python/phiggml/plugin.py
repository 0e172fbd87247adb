"""Backends that are distributions of their own: which are installed, and which of them fit."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from phiggml import _core

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["GROUP", "Plugin", "absent_plugins", "installed_plugins"]

logger = logging.getLogger("phiggml")

GROUP = "phiggml.backends"
"""The entry points by which a distribution says that it holds a backend: NAME = PACKAGE."""

_DESCRIPTION = "plugin.json"
_MOST_BYTES = 1 << 16
_MOST_ID = 64
_CHOICE = "PHIGGML_BACKENDS"
# What comes of reading metadata that is damaged.
_DAMAGE = (AttributeError, LookupError, OSError, TypeError, ValueError)


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


def _points() -> list[EntryPoint]:
    """All entry points of the group, in the order in which Python would import their packages."""
    from importlib import metadata  # which takes longer than the rest of an import

    try:
        return list(metadata.entry_points(group=GROUP))
    except _DAMAGE:  # of some distribution here, which need not be a plugin
        points: dict[tuple[str, str], EntryPoint] = {}
        for distribution in metadata.distributions():
            try:
                for point in distribution.entry_points.select(group=GROUP):
                    points.setdefault((point.name, point.value), point)
            except _DAMAGE as failure:
                place = distribution.locate_file("")
                logger.warning("the entry points of a package in %s: %s", place, failure)
        return list(points.values())


def _named() -> frozenset[str] | None:
    """The names in PHIGGML_BACKENDS; None where it is not set."""
    choice = os.environ.get(_CHOICE)
    if choice is None:
        return None
    return frozenset(name.strip().casefold() for name in choice.split(",")) - {"", "none"}


def installed_plugins() -> list[Plugin]:
    """Finds the installed backends, by name; runs nothing of theirs.

    Returns:
        One Plugin for each; those that PHIGGML_BACKENDS leaves out have a fault that says so.

    Cost:
        Looks through the metadata of all installed distributions.
    """
    named = _named()
    plugins: dict[str, list[Plugin]] = {}
    for point in _points():
        others = plugins.setdefault(point.name, [])
        distribution = _distribution(point)
        if named is not None and not named & {point.name.casefold(), "all"}:
            plugin = Plugin(point.name, distribution, None, f"{_CHOICE} leaves it out.")
        elif others:
            fault = f"{others[0].distribution} has a backend of this name, too. Uninstall one."
            plugin = Plugin(point.name, distribution, None, fault)
        else:
            plugin = _plugin(point, distribution)
        others.append(plugin)
    return [plugin for name in sorted(plugins) for plugin in plugins[name]]


def absent_plugins() -> list[str]:
    """Names in PHIGGML_BACKENDS that are not installed."""
    installed = {point.name.casefold() for point in _points()}
    return sorted((_named() or frozenset()) - installed - {"all"})


def _distribution(point: EntryPoint) -> str:
    try:
        name, version = (point.dist.name, point.dist.version) if point.dist else ("", "")
    except _DAMAGE:
        return ""
    return f"{name} {version}" if name and version else name or ""


def _plugin(point: EntryPoint, distribution: str) -> Plugin:
    try:
        library, needs = _library(point.value)
    except _FaultError as error:
        return Plugin(point.name, distribution, None, str(error))
    return Plugin(point.name, distribution, library, needs=needs)


class _FaultError(Exception):
    """Why a plugin cannot be used."""


def _library(package: str) -> tuple[Path, tuple[str, ...]]:
    """A plugin's module, and what that needs."""
    folder = _folder(package)
    build_id, name, needs = _described(folder / _DESCRIPTION)
    if build_id != _core.runtime.build_id():
        raise _FaultError(
            f"it was built for another phiggml (build {build_id}, not "
            f"{_core.runtime.build_id()}). Install both in the same version."
        )
    try:
        is_there = Path(name).name == name and (folder / name).is_file()
        is_whole = is_there and _core.runtime.is_whole(os.fsencode(folder / name))
    except (OSError, ValueError):  # a name that is too long, a file that may not be read
        is_there = is_whole = False
    if not is_there:
        raise _FaultError(f"its module {name!r:.80} is not in {folder}. Install it again.")
    if not is_whole:
        raise _FaultError(f"its module {name!r:.80} is cut off. Install it again.")
    return folder / name, needs


def _folder(package: str) -> Path:
    """A package's folder; what is not one of its own, such as `sys`, is no plugin's."""
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except (ImportError, AttributeError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not spec.submodule_search_locations:
        raise _FaultError(f"its package {package!r:.80} is not there. Install it again.")
    folder = Path(spec.origin).parent
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise _FaultError(f"{str(folder)!r}: this path is not UTF-8. Move it.") from error
    return folder


def _described(file: Path) -> tuple[str, str, tuple[str, ...]]:
    """What plugin.json says: build id, library and needs."""
    try:
        with file.open("rb") as stream:
            description = json.loads(stream.read(_MOST_BYTES))
        build_id, name = str(description["build_id"]), str(description["library"])
        needs = description.get("needs", [])
        if not isinstance(needs, list) or not all(_is_word(library) for library in needs):
            raise TypeError("needs is no list of names")
        if not build_id.isprintable() or len(build_id) > _MOST_ID:
            raise ValueError("build_id is none")
    except (*_DAMAGE, RecursionError) as error:
        raise _FaultError(f"{file} cannot be read. Install it again.") from error
    return build_id, name, tuple(needs)


def _is_word(library: object) -> bool:
    return isinstance(library, str) and library.isidentifier()
