"""An HTTP server on this machine that gives ranges of bytes, and counts what it gave."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

from http_serving import http_serving


class RangeServer:
    """Serves files by name.

    Args:
        files: name -> content.
        with_ranges: whether requests for ranges are heard.
    """

    def __init__(self, files: Mapping[str, bytes], *, with_ranges: bool) -> None:
        self.files = files
        self.with_ranges = with_ranges
        self.bytes_given = 0
        self.url = ""


@contextmanager
def serving(files: Mapping[str, bytes], *, with_ranges: bool = True) -> Iterator[RangeServer]:
    served = RangeServer(files, with_ranges=with_ranges)
    with http_serving(_handler(served)) as served.url:
        yield served


def _handler(served: RangeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            content = served.files.get(self.path.lstrip("/").split("?")[0])
            if content is None:
                self.send_error(404)
                return
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            total = len(content)
            if wanted is not None and served.with_ranges:
                start, stop = int(wanted[1]), min(int(wanted[2]) + 1, total)
                content = content[start:stop]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
            else:
                self.send_response(200)
            if served.with_ranges:
                self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                served.bytes_given += len(content)
                self.wfile.write(content)

        def log_message(self, format: str, *values: object) -> None:
            pass

    return Handler
