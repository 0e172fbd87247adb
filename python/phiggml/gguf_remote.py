"""Files that are read piece by piece: behind a URL, or a Python file object."""

from __future__ import annotations

import errno
import sys
import threading
from typing import IO, Any

from phiggml.errors import FormatError, InputError, UnsupportedError

__all__ = ["RemoteBytes", "is_url", "open_url"]


class RemoteBytes:
    """The bytes of a seekable binary file object, read where they are needed.

    Args:
        stream: the file object; nobody else may move it meanwhile.
        name: what messages call it.
        owned: whether close() closes it.

    Raises:
        InputError: it cannot be read at any place, or gives text.

    Cost:
        Each read seeks and reads; one at a time.
    """

    def __init__(self, stream: IO[bytes], name: str, *, owned: bool) -> None:
        self.name = name
        self._stream = stream
        self._owned = owned
        self._lock = threading.Lock()
        try:
            self.size = int(stream.seek(0, 2))
            text = isinstance(stream.read(0), str)
        except (AttributeError, TypeError, ValueError, OSError) as error:
            raise InputError(
                f"GGUFFile: {name}: it cannot be read at any place: {error}. "
                "Pass a path, bytes, or a seekable binary file."
            ) from error
        if text:
            raise InputError(f"GGUFFile: {name}: it gives text. Open it in binary mode.")

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Bytes [offset, offset + nbytes).

        Raises:
            FormatError: the file has become shorter.
            UnsupportedError: the server does not give ranges.
            InputError: the stream has been closed.
            OSError: the network, or whatever is behind the stream, failed.
        """
        pieces: list[bytes] = []
        missing = nbytes
        with self._lock:
            while missing > 0:
                piece = self._read(offset + nbytes - missing, missing)
                if not piece:
                    raise FormatError(
                        f"read: {self.name}: it ends before byte {offset + nbytes}, though it "
                        f"promised {self.size}. Open it again.",
                        path=self.name,
                        offset=offset + nbytes - missing,
                    )
                pieces.append(piece)
                missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read(self, offset: int, most: int) -> bytes:
        try:
            self._stream.seek(offset)
            return self._stream.read(most)
        except ValueError as error:
            if self._owned:
                raise UnsupportedError(
                    f"read: {self.name}: the server gives no ranges of bytes: {error}. "
                    "Download the file."
                ) from error
            raise InputError(f"read: {self.name}: {error}. Open it again.") from error
        except _network_errors() as error:
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}", self.name) from error

    def close(self) -> None:
        """Closes the stream if it is this object's own."""
        if self._owned:
            self._stream.close()


def is_url(source: object) -> bool:
    """Whether this is a URL such as fsspec opens, not a path."""
    return isinstance(source, str) and "://" in source


def open_url(url: str) -> RemoteBytes:
    """Opens what is behind a URL, for reading by ranges.

    Raises:
        UnsupportedError: fsspec, or what it needs for this kind of URL, is not installed; or
            the server does not give ranges.
        OSError: it cannot be opened.
    """
    try:
        import fsspec
    except ImportError as error:
        raise UnsupportedError(
            f"GGUFFile: {url}: URLs are read by fsspec. Install it: pip install phiggml[remote]."
        ) from error
    try:
        # No cache: the header is asked for in growing pieces, and tensors just once.
        stream: Any = fsspec.open(url, mode="rb", cache_type="none").open()
    except (ImportError, ValueError) as error:
        raise UnsupportedError(f"GGUFFile: {url}: fsspec cannot open it: {error}.") from error
    except _network_errors() as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", url) from error
    if not getattr(stream, "seekable", lambda: False)():
        stream.close()
        raise UnsupportedError(
            f"GGUFFile: {url}: the server gives no ranges of bytes. Download the file."
        )
    return RemoteBytes(stream, url, owned=True)


def _network_errors() -> tuple[type[Exception], ...]:
    """What fsspec lets through that is no OSError, though a network's failure."""
    http = sys.modules.get("aiohttp")
    if http is None:
        return ()
    from asyncio import TimeoutError as Timeout  # an OSError only from Python 3.11 on

    return (http.ClientError, Timeout)
