"""Files of one commit on the hub, fetched one after the other into huggingface_hub's cache."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from phiggml.conversion.safetensors import HEADER_LIMIT
from phiggml.progress import Progress

__all__ = ["Download", "logged_as_ours", "quiet_bar"]


# The headers of most files are shorter.
_FIRST_BYTES = 100_000
_TIMEOUT_SECONDS = 30.0

logger = logging.getLogger("phiggml")


class _ToOurs(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        logger.log(record.levelno, "huggingface_hub: %s", record.getMessage())


# What has been put aside while at least one thread fetches.
_lock = threading.Lock()
_put_aside: list[logging.Handler] = []
_n_inside = 0


@contextmanager
def logged_as_ours() -> Iterator[None]:
    """huggingface_hub writes its log on stderr; meanwhile it goes where ours does."""
    global _n_inside
    theirs = logging.getLogger("huggingface_hub")
    with _lock:
        if _n_inside == 0:
            _put_aside[:], theirs.handlers[:] = theirs.handlers, [_ToOurs()]
        _n_inside += 1
    try:
        yield
    finally:
        with _lock:
            _n_inside -= 1
            if _n_inside == 0:
                theirs.handlers[:] = _put_aside


class Download:
    """The files of one commit.

    Args:
        model: "owner/name".
        commit: whose files they are.
        sizes: of all its files, in bytes.
        progress: called with the bytes so far, by the thread that fetches.
    """

    def __init__(
        self,
        model: str,
        commit: str,
        *,
        sizes: Mapping[str, int],
        progress: Callable[[Progress], object] | None,
    ) -> None:
        self._model = model
        self._commit = commit
        self._sizes = sizes
        self._progress = progress

    def first(self, name: str, revision: str | None) -> None:
        """Fetches a file by the revision's name, which the cache remembers."""
        from huggingface_hub import hf_hub_download

        hf_hub_download(self._model, name, revision=revision, tqdm_class=quiet_bar(None))

    def fetch(self, names: Iterable[str]) -> Path:
        """Fetches files that the cache lacks; returns the folder that holds them.

        Raises:
            OSError: the disk or, as huggingface_hub's classes, the network failed.
        """
        from huggingface_hub import hf_hub_download

        wanted = list(dict.fromkeys(names))
        total = sum(self._sizes[name] for name in wanted)
        done = 0
        folder = Path()
        for name in wanted:
            path = hf_hub_download(
                self._model,
                name,
                revision=self._commit,
                tqdm_class=quiet_bar(self._advance(done, total)),
            )
            done += self._sizes[name]
            self._advance(done, total)(0)
            # additional_chat_templates/x.jinja lies one folder deeper.
            folder = Path(path).parents[name.count("/")]
        return folder

    def header(self, name: str, target: Path) -> None:
        """Writes a safetensors file with a hole in place of its data: a plan reads no more."""
        data = self._beginning(name, _FIRST_BYTES)
        length = 8 + int.from_bytes(data[:8], "little")
        if _FIRST_BYTES < length <= HEADER_LIMIT:
            data = self._beginning(name, length)
        with target.open("wb") as file:
            file.write(data[:length])
            # What this length does not fit is told when the file is opened.
            file.truncate(self._sizes[name])

    def _beginning(self, name: str, nbytes: int) -> bytes:
        """The first bytes of a file; no more are taken from a server that knows no ranges."""
        from huggingface_hub import get_session, get_token, hf_hub_url

        headers = {"Accept-Encoding": "identity", "Range": f"bytes=0-{nbytes - 1}"}
        if token := get_token():
            headers["Authorization"] = f"Bearer {token}"
        data = bytearray()
        with get_session().stream(
            "GET",
            hf_hub_url(self._model, name, revision=self._commit),
            headers=headers,
            timeout=_TIMEOUT_SECONDS,
            follow_redirects=True,
        ) as response:
            response.raise_for_status()
            for piece in response.iter_bytes():
                data += piece
                if len(data) >= nbytes:
                    break
        return bytes(data[:nbytes])

    def _advance(self, start: int, total: int) -> Callable[[int], None]:
        def advance(nbytes: int) -> None:
            if self._progress is not None and total:
                self._progress(Progress("download", min(start + nbytes, total), total))

        return advance


def quiet_bar(advance: Callable[[int], None] | None) -> type[Any]:
    """A class of progress bars that shows nothing, and tells the bytes of one file."""
    caller = threading.get_ident()

    class Bar(tqdm):  # type: ignore[type-arg]
        """What huggingface_hub takes for its bar."""

        def __init__(self, *arguments: Any, **settings: Any) -> None:
            # Only this name is huggingface_hub's own; tqdm would not know it.
            settings.pop("name", None)
            super().__init__(*arguments, **{**settings, "disable": True})
            self._bytes = 0

        def update(self, n: float | None = 1) -> bool | None:
            self._bytes += int(n or 0)
            # Other threads may fetch, but users are called by their own.
            if advance is not None and threading.get_ident() == caller:
                advance(self._bytes)
            return None

    return Bar
