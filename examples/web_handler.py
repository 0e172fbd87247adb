"""Answers chats over HTTP while they grow: an ASGI application without a framework.

    pip install phiggml uvicorn
    PHIGGML_MODEL=phi3.gguf uvicorn --app-dir examples --factory web_handler:application
    curl -N localhost:8000 -d '{"messages": [{"role": "user", "content": "What is GGUF?"}]}'

A POST of JSON is answered with server-sent events, one for each piece of text:

    data: {"text": "GGUF is"}
    data: {"text": " the file format"}
    data: {"finish_reason": "stop", "tokens": 31, "tokens_per_second": 24.7}

Two clients are served at a time, from one copy of the weights; others wait for their turn. A client
that goes away takes its answer with it: no token is computed for nobody.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, MutableMapping
from contextlib import aclosing
from typing import Any

import phiggml as pg

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

MOST_BYTES = 1 << 20


class RefusedError(Exception):
    """A request that is not answered: the status and a sentence."""


class ChatApplication:
    """An ASGI application over sessions of one model."""

    def __init__(self, model: pg.Model, *, n_clients: int = 2, n_ctx: int = 4096) -> None:
        self._model = model
        self._sessions = [pg.Session(model, n_ctx=n_ctx) for _ in range(n_clients)]
        self._free: asyncio.Queue[pg.Session] = asyncio.Queue()
        for session in self._sessions:
            self._free.put_nowait(session)

    def close(self) -> None:
        """Frees the sessions and the model."""
        for session in self._sessions:
            session.close()
        self._model.close()

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            try:
                request = await _request(scope, receive)
                await _while_connected(self._answer(request, send), receive)
            except RefusedError as refusal:
                status, sentence = refusal.args
                await _start(send, status, "text/plain; charset=utf-8")
                await send({"type": "http.response.body", "body": f"{sentence}\n".encode()})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, request: dict[str, Any], send: Send) -> None:
        session = await self._free.get()
        try:
            async with aclosing(_answer(session, request)) as chunks:
                await _start(send, 200, "text/event-stream")
                async for event in _events(chunks):
                    data = f"data: {json.dumps(event)}\n\n".encode()
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        finally:
            self._free.put_nowait(session)


def _answer(session: pg.Session, request: dict[str, Any]) -> AsyncGenerator[pg.Chunk, None]:
    try:
        return session.astream_chat(
            request.get("messages", ()),
            max_tokens=request.get("max_tokens", 512),
            sampling=pg.Sampling(temperature=request.get("temperature", 0.8)),
        )
    except pg.PhiggmlError as error:  # arguments, and whether the chat fits, are checked at once
        raise RefusedError(400, str(error)) from None


async def _events(chunks: AsyncGenerator[pg.Chunk, None]) -> AsyncGenerator[dict[str, Any], None]:
    try:
        async for chunk in chunks:
            if chunk.text:
                yield {"text": chunk.text}
            if chunk.timings is not None:
                yield {
                    "finish_reason": chunk.finish_reason,
                    "tokens": chunk.timings.tokens,
                    "tokens_per_second": round(chunk.timings.tokens_per_second, 1),
                }
    except pg.SessionError as error:  # the answer has filled the context, for one
        yield {"error": str(error)}


async def _request(scope: Event, receive: Receive) -> dict[str, Any]:
    if scope["method"] != "POST":
        raise RefusedError(405, "Send a POST of JSON.")
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MOST_BYTES:
            raise RefusedError(413, f"The request has more than {MOST_BYTES} bytes.")
        if not message.get("more_body", False):
            break
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"The request is no JSON: {error}.") from None
    if not isinstance(request, dict):
        raise RefusedError(400, "The request is no JSON object.")
    return request


async def _while_connected(answer: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Runs it to its end, or until the client goes away."""
    answering = asyncio.create_task(answer)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            answering.result()
    finally:
        # To cancel the task is to cancel the answer; it is over when the wait is.
        answering.cancel()
        leaving.cancel()
        await asyncio.wait([answering, leaving])


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(send: Send, status: int, content_type: str) -> None:
    headers = [(b"content-type", content_type.encode()), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": status, "headers": headers})


def application() -> ChatApplication:
    """What `uvicorn --factory` calls."""
    return ChatApplication(pg.Model(os.environ["PHIGGML_MODEL"]))
