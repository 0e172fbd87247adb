"""Faults of a checkpoint, gathered so that one error names them all."""

from __future__ import annotations

from pathlib import Path

from phiggml.errors import FormatError

__all__ = ["Faults"]

# A damaged checkpoint of 512 layers can have a million; past this many they are only counted.
_SHOWN = 100
# Longer than any sentence of ours with names of real tensors in it.
_LONGEST = 1000


class Faults:
    """Gathers sentences about what is wrong, each with the file it was found in.

    Attributes:
        operation: what was to be done.
        sentences: the first of them; empty where nothing is wrong.
        count: of all.
    """

    def __init__(self, operation: str) -> None:
        self.operation = operation
        self.sentences: list[str] = []
        self.count = 0
        self._paths: set[Path] = set()

    def add(self, path: Path, sentence: str) -> None:
        self.count += 1
        self._paths.add(path)
        if self.count > _SHOWN:
            return
        if len(sentence) > _LONGEST:
            # A hostile name can be as long as its file.
            half = _LONGEST // 2
            sentence = f"{sentence[:half]}...{sentence[-half:]}"
        self.sentences.append(f"{path.name or path}: {sentence}")

    def raise_if_any(self, folder: Path) -> None:
        """Raises one FormatError for all faults, if there are any."""
        if self.sentences:
            raise self.error(folder)

    def error(self, folder: Path) -> FormatError:
        """One FormatError for all faults; its path is their file, or else the folder."""
        path = next(iter(self._paths)) if len(self._paths) == 1 else folder
        if self.count == 1:
            return FormatError(f"{self.operation}: {path}: {self.sentences[0]}", path=str(path))
        lines = [f"  {i}. {s}" for i, s in enumerate(self.sentences, 1)]
        if self.count > _SHOWN:
            lines.append(f"  ... and {self.count - _SHOWN} more.")
        text = "\n".join(lines)
        return FormatError(
            f"{self.operation}: {path}: {self.count} faults:\n{text}", path=str(path)
        )
