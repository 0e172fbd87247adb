"""Faults of a checkpoint, gathered so that one error names them all."""

from __future__ import annotations

from pathlib import Path

from phiggml.errors import FormatError

__all__ = ["Faults"]

# A damaged checkpoint of 512 layers can have thousands; past this many they are only counted.
_SHOWN = 100


class Faults:
    """Gathers sentences about what is wrong, each with the file it was found in."""

    def __init__(self, operation: str) -> None:
        self.operation = operation
        self.sentences: list[str] = []
        self._paths: list[Path] = []

    def add(self, path: Path, sentence: str) -> None:
        self.sentences.append(f"{path.name}: {sentence}")
        self._paths.append(path)

    def raise_if_any(self, folder: Path) -> None:
        """Raises one FormatError for all faults, if there are any."""
        if self.sentences:
            raise self.error(folder)

    def error(self, folder: Path) -> FormatError:
        """One FormatError for all faults; its path is their file, or else the folder."""
        path = self._paths[0] if len(set(self._paths)) == 1 else folder
        count = len(self.sentences)
        if count == 1:
            return FormatError(f"{self.operation}: {path}: {self.sentences[0]}", path=str(path))
        lines = [f"  {i}. {s}" for i, s in enumerate(self.sentences[:_SHOWN], 1)]
        if count > _SHOWN:
            lines.append(f"  ... and {count - _SHOWN} more.")
        text = "\n".join(lines)
        return FormatError(f"{self.operation}: {path}: {count} faults:\n{text}", path=str(path))
