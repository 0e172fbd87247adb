"""The programs of examples: each does what it says, on phi3-nano."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import phiggml as pg
from example_programs import FOLDER, example
from small_models import small_model

ROOT = FOLDER.parent
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py"))
GREEDY = pg.Sampling(temperature=0)


def run(name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    example(name).main()


def test_each_has_a_test() -> None:
    assert PROGRAMS == [
        "from_llama_cpp_python",
        "moe_experts_on_cpu",
        "search_docs",
        "structured_output",
        "web_handler",
    ]


# web_handler --------------------------------------------------------------------------------------


class Client:
    """The server's side of one request: what an ASGI server would do, and no more.

    It goes away when it has read so many bodies; never, where leaves_after is None.
    """

    def __init__(self, body: bytes, *, method: str = "POST", leaves_after: int | None = None):
        self._messages = [{"type": "http.request", "body": body, "more_body": False}]
        self._scope = {"type": "http", "method": method, "path": "/", "headers": []}
        self._leaves_after = leaves_after
        self._left = asyncio.Event()
        self.status = 0
        self.bodies: list[bytes] = []

    async def receive(self) -> Any:
        if self._messages:
            return self._messages.pop()
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["body"]:
            self.bodies.append(message["body"])
        if self._leaves_after is not None and len(self.bodies) >= self._leaves_after:
            self._left.set()

    async def ask(self, application: Any) -> Client:
        await application(self._scope, self.receive, self.send)
        return self

    @property
    def events(self) -> list[dict[str, Any]]:
        blocks = b"".join(self.bodies).decode().split("\n\n")
        assert blocks.pop() == ""
        return [json.loads(block.removeprefix("data: ")) for block in blocks]

    @property
    def text(self) -> str:
        return "".join(event.get("text", "") for event in self.events)


def request(question: str, **settings: Any) -> bytes:
    messages = [{"role": "user", "content": question}]
    return json.dumps({"messages": messages, "temperature": 0, **settings}).encode()


@pytest.fixture
def application(nano_f16: Path) -> Iterator[Any]:
    made = example("web_handler").ChatApplication(pg.Model(nano_f16), n_ctx=512)
    yield made
    made.close()


def test_the_handler_answers_several_clients(
    application: Any, questions: list[dict[str, Any]]
) -> None:
    """More of them than sessions; each gets the answer that phi3-nano knows by heart."""
    asked = questions[:4]

    async def together() -> list[Client]:
        clients = [Client(request(q["question"])) for q in asked]
        return await asyncio.gather(*(client.ask(application) for client in clients))

    clients = asyncio.run(together())
    assert [client.text for client in clients] == [q["answer"] for q in asked]
    for client in clients:
        assert client.status == 200
        assert len(client.events) > 5
        assert client.events[-1]["finish_reason"] == "stop"


def test_a_client_that_goes_away_cancels(application: Any) -> None:
    async def asked() -> Client:
        client = Client(request("The child", max_tokens=400), leaves_after=3)
        for _ in range(3):  # more often than there are sessions: each comes back
            await client.ask(application)
            client = Client(request("The child", max_tokens=400), leaves_after=3)
        await client.ask(application)
        return client

    client = asyncio.run(asked())
    assert 3 <= len(client.bodies) < 25
    assert "finish_reason" not in client.events[-1]
    answer = asyncio.run(Client(request("What is GGUF?")).ask(application))
    assert answer.text.startswith("GGUF is the file format")


def test_the_handler_refuses_in_a_sentence(application: Any) -> None:
    refused = {
        405: [Client(b"", method="GET")],
        400: [
            Client(b"{"),
            Client(b"[" * 100_000),
            Client(b"[]"),
            Client(b'{"messages": 7}'),
            Client(request("Hi", max_tokens=0)),
            Client(request("Hi", temperature="hot")),
            Client(request("word " * 600)),
        ],
        413: [Client(b" " * (1 << 21))],
    }
    for status, clients in refused.items():
        for client in clients:
            asyncio.run(client.ask(application))
            assert client.status == status
            assert client.bodies[0].endswith(b".\n")
    assert b"n_ctx" in refused[400][-1].bodies[0]
    full = asyncio.run(Client(request("word " * 505)).ask(application))
    assert "n_ctx" in full.events[-1]["error"]


def test_the_handler_lives_and_ends(nano_f16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHIGGML_MODEL", str(nano_f16))
    made = example("web_handler").application()
    said: list[str] = []

    async def receive() -> Any:
        return {}

    async def send(message: Any) -> None:
        said.append(message["type"])

    asyncio.run(made({"type": "lifespan"}, receive, send))
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


# structured_output --------------------------------------------------------------------------------


def test_facts_have_their_types(nano_f16: Path) -> None:
    program = example("structured_output")
    schema = program.schema_of(program.Release)
    with pg.Session(nano_f16, n_ctx=1024) as session:
        facts = program.extract(session, program.TEXT, program.Release)
        assert isinstance(facts, program.Release)
        jsonschema.validate(dataclasses.asdict(facts), schema)
        assert type(facts.year) is int and 2000 <= facts.year <= 2099
        assert program.choose(session, "Is water wet?", ["yes", "no"]) in ("yes", "no")
        with pytest.raises(ValueError, match="has not ended within 3 tokens"):
            program.extract(session, program.TEXT, program.Release, max_tokens=3)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**dataclasses.asdict(facts), "year": "2024"}, schema)


# search_docs --------------------------------------------------------------------------------------


def test_paragraphs_are_found(nano_f16: Path, tmp_path: Path) -> None:
    program = example("search_docs")
    (tmp_path / "a.md").write_text(
        "# Types\n\nQ4_K has scales.\n\n## Sizes\nIt is small.\n", "utf-8"
    )
    (tmp_path / "b.md").write_text("A page without a heading.\n\n\n\n# An empty one\n")
    assert list(program.paragraphs(tmp_path)) == [
        program.Paragraph("a.md", "Types", "Q4_K has scales."),
        program.Paragraph("a.md", "Sizes", "It is small."),
        program.Paragraph("b.md", "b", "A page without a heading."),
    ]
    with pg.Session(nano_f16, n_ctx=512) as session:
        library = program.Library(session, tmp_path)
        found = library.search("Types\nQ4_K has scales.", 2)
        assert found[0][1].text == "Q4_K has scales."
        assert abs(found[0][0] - 1) < 1e-5 and found[1][0] < 0.999


def test_the_best_paragraphs_are_asked_about(nano_f16: Path, tmp_path: Path) -> None:
    """On pages of our own: what is found is in the prompt, and the prompt fits."""
    for name in ("gpu.md", "versioning.md"):
        (tmp_path / name).symlink_to(ROOT / "docs" / name)
    program = example("search_docs")
    with pg.Session(nano_f16, n_ctx=1024) as session:
        library = program.Library(session, tmp_path)
        assert len(library.paragraphs) > 20
        assert np.allclose(np.linalg.norm(library.vectors, axis=1), 1, atol=1e-5)
        question = "How is the KV cache kept on the CPU?"
        found = library.search(question, len(library.paragraphs))
        cosines = [cosine for cosine, _ in found]
        assert cosines == sorted(cosines, reverse=True)
        best = f"{found[0][1].heading}\n{found[0][1].text}"
        ids = [session.model.tokenize(text)[: program.MOST_TOKENS] for text in (question, best)]
        rows = session.embed(ids, pooling="none", normalize=False)
        a, b = (np.mean(each, axis=0, dtype=np.float64) for each in rows)
        assert abs(cosines[0] - a @ b / np.sqrt((a @ a) * (b @ b))) < 1e-5
        [message] = program.prompt_of(session, "Why?", found, max_tokens=50)
        texts = [paragraph.text for _, paragraph in found]
        held = [text in message["content"] for text in texts]
        assert held[0] and not all(held)
        session.chat([message], max_tokens=50, sampling=GREEDY)


# moe_experts_on_cpu -------------------------------------------------------------------------------


def test_a_mixture_is_planned_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_model("phimoe").write(tmp_path / "moe.gguf")
    program = example("moe_experts_on_cpu")
    monkeypatch.setattr(program, "gpus", list)
    options = ("--n-ctx", 64, "--max-tokens", 4)
    run("moe_experts_on_cpu", path, "a b", *options, monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert said.startswith("There is no GPU here")
    assert "0 of 3 layers offloaded, n_ctx 64" in said
    with pytest.raises(pg.DeviceError, match="CUDA7"):
        run("moe_experts_on_cpu", path, "a", "--device", "CUDA7", monkeypatch=monkeypatch)


# from_llama_cpp_python ----------------------------------------------------------------------------


def test_the_moved_program_runs(
    nano_f16: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("from_llama_cpp_python", nano_f16, monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert "stream_chat: 'GGUF is the file format" in said
    assert "embed: 2 vectors" in said
    program = example("from_llama_cpp_python")
    with program.opened(str(nano_f16)) as session:
        assert program.chat(session)[-1]["role"] == "assistant"
        jsonschema.validate(json.loads(program.structured(session)), program.PERSON)
        assert program.constrained(session) in (" red", " blue")
        assert all(value <= 0 for value in program.logprobs(session))
        program.save(session, str(tmp_path / "text.state"))
