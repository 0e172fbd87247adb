"""Files that are read piece by piece: behind a URL, or a Python file object."""

from __future__ import annotations

import errno
import os
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
        opener: what close() closes it with, when it is this object's own.

    Raises:
        InputError: it cannot be read at any place, or gives text.
        OSError: whatever is behind it failed.

    Cost:
        Each read seeks and reads; one at a time. A server that sends more than the range it was
        asked for is refused once it has ended.
    """

    def __init__(self, stream: IO[bytes], name: str, *, opener: Any = None) -> None:
        self.name = name
        self._stream = stream
        self._opener = opener
        self._closed = False
        self._lock = threading.Lock()
        try:
            size: Any = stream.seek(0, 2)
            text = isinstance(stream.read(0), str)
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(
                f"GGUFFile: {name}: it cannot be read at any place: {error}. "
                "Pass a path, bytes, or a seekable binary file."
            ) from error
        if text:
            raise InputError(f"GGUFFile: {name}: it gives text. Open it in binary mode.")
        if not isinstance(size, int) or not 0 <= size < 1 << 63:
            raise InputError(f"GGUFFile: {name}: it says that it has {size!r} bytes.")
        self.size = size

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Bytes [offset, offset + nbytes).

        Raises:
            FormatError: the file has become shorter, or gives what it was not asked for.
            UnsupportedError: the server does not give ranges.
            InputError: it has been closed.
            OSError: the network, or whatever is behind the stream, failed.
        """
        pieces: list[bytes] = []
        missing = nbytes
        with self._lock:
            if self._closed:
                raise InputError(f"read: {self.name}: it is closed. Open it again.")
            while missing > 0:
                place = offset + nbytes - missing
                piece = self._read(place, missing)
                if not piece:
                    raise FormatError(
                        f"read: {self.name}: it ends before byte {offset + nbytes}, though it "
                        f"promised {self.size}. Open it again.",
                        path=self.name,
                        offset=place,
                    )
                pieces.append(piece)
                missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read(self, offset: int, most: int) -> bytes:
        piece: Any
        try:
            self._stream.seek(offset)
            piece = self._stream.read(most)
        except (TypeError, ValueError) as error:
            if self._opener is not None:
                raise UnsupportedError(
                    f"read: {self.name}: the server gives no ranges of bytes: {error}. "
                    "Download the file."
                ) from error
            raise InputError(f"read: {self.name}: {error}. Open it again.") from error
        except _network_errors() as error:
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}", self.name) from error
        if not isinstance(piece, bytes | bytearray | memoryview) or len(piece) > most:
            given = f"{len(piece)} bytes" if isinstance(piece, bytes) else type(piece).__name__
            raise FormatError(
                f"read: {self.name}: it gives {given} where {most} bytes were asked for.",
                path=self.name,
                offset=offset,
            )
        return bytes(piece)

    def close(self) -> None:
        """Ends reading; closes the stream if it is this object's own."""
        with self._lock:
            self._closed = True
            if self._opener is not None:
                self._stream.close()
                self._opener.close()


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
            f"GGUFFile: {url}: URLs are read by fsspec. Install it: pip install fsspec[http]."
        ) from error
    try:
        # No cache: the header is asked for in growing pieces, and tensors just once.
        opener = fsspec.open(url, mode="rb", cache_type="none")
        stream: Any = opener.open()
    except _network_errors() as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", url) from error
    except OSError as error:
        raise _with_reason(error, url) from error
    except Exception as error:
        # Each kind of URL has its own errors.
        raise UnsupportedError(
            f"GGUFFile: {url}: fsspec cannot open it: {type(error).__name__}: {error}."
        ) from error
    if not getattr(stream, "seekable", lambda: False)():
        opener.close()
        raise UnsupportedError(
            f"GGUFFile: {url}: the server gives no ranges of bytes. Download the file."
        )
    return RemoteBytes(stream, url, opener=opener)


def _with_reason(error: OSError, url: str) -> OSError:
    """The error with number, reason and name: fsspec's may have the name alone."""
    if error.errno is not None:
        return error
    number = errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO
    cause = error.__cause__ or error.__context__
    reason = os.strerror(number) if cause is None else str(cause)
    return OSError(number, reason, url)


def _network_errors() -> tuple[type[Exception], ...]:
    """What fsspec lets through that is no OSError, though a network's failure."""
    http = sys.modules.get("aiohttp")
    if http is None:
        return ()
    from asyncio import TimeoutError as Timeout  # an OSError only from Python 3.11 on

    return (http.ClientError, Timeout)
