"""A server on this machine that answers as the Hugging Face hub does, and counts what it gave."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from http_serving import http_serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_API = re.compile(r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/([^?]+))?(?:\?.*)?")
_FILE = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/([^?]+)")


@dataclass
class HubServer:
    """One model on the hub.

    Args:
        model: its id.
        files: name -> content.
        refusal: (status, X-Error-Code) with which all is refused, or files alone.
        files_only: whether the list of files is given all the same.
        listing: what is changed in that list, or what is given instead of it.
    """

    model: str
    files: Mapping[str, bytes]
    refusal: tuple[int, str] | None = None
    files_only: bool = False
    listing: Mapping[str, Any] | bytes = field(default_factory=dict)
    url: str = ""
    # Names of the files whose content was given, wholly or in part, and how many bytes.
    given: list[tuple[str, int]] = field(default_factory=list)

    @property
    def names_given(self) -> set[str]:
        return {name for name, _ in self.given}

    def listed(self, document: Mapping[str, Any]) -> bytes:
        if isinstance(self.listing, bytes):
            return self.listing
        return json.dumps({**document, **self.listing}).encode()


@contextmanager
def hub_serving(server: HubServer) -> Iterator[HubServer]:
    with http_serving(_handler(server)) as server.url:
        yield server


def _handler(server: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            listing, file = _API.fullmatch(self.path), _FILE.match(self.path)
            if server.refusal is not None and not (listing and server.files_only):
                self._send(server.refusal[0], b"", {"X-Error-Code": server.refusal[1]})
            elif listing is not None:
                self._list(listing[1], listing[2] or "main")
            elif file is not None and file[1] == server.model and file[3] in server.files:
                self._give(file[3])
            else:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

        def _list(self, model: str, revision: str) -> None:
            if model != server.model:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif revision not in ("main", "v1", COMMIT):
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            else:
                siblings = [
                    {"rfilename": name, "size": len(content), "blobId": _digest(content)}
                    for name, content in server.files.items()
                ]
                document = {"id": model, "modelId": model, "sha": COMMIT, "siblings": siblings}
                kind = {"Content-Type": "application/json"}
                self._send(200, server.listed(document), kind)

        def _give(self, name: str) -> None:
            content = server.files[name]
            headers = {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": COMMIT}
            status = 200
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if wanted is not None:
                start = int(wanted[1])
                stop = min(int(wanted[2] or len(content)) + 1, len(content))
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
                content, status = content[start:stop], 206
            if self.command == "GET":
                server.given.append((name, len(content)))
            self._send(status, content, headers)

        def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing: the tests' output is for the tests."""

    return Handler


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
