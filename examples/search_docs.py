"""Answers questions about a folder of Markdown pages: finds paragraphs by embedding, then asks.

    python examples/search_docs.py phi3.gguf docs "How is the KV cache kept on the CPU?"

Each paragraph becomes a vector, and so does the question; the paragraphs that point in the most
similar direction go into the prompt, as many as fit. Any model that phiggml runs can embed; one
that was trained for it (BERT's relatives) finds better: give it with --embedder.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

import phiggml as pg

MOST_TOKENS = 256
"""Of a paragraph, where it is embedded; what is longer counts by its beginning."""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph and where it stands."""

    page: str
    heading: str
    text: str


def paragraphs(folder: Path) -> Iterator[Paragraph]:
    """All paragraphs of a folder's pages, with the heading above each."""
    for page in sorted(folder.glob("*.md")):
        heading = page.stem
        for text in page.read_text("utf-8").split("\n\n"):
            text = text.strip()
            if text.startswith("#"):
                heading, _, text = text.lstrip("# ").partition("\n")
            if text and not text.startswith("<!--"):
                yield Paragraph(page.name, heading, text.strip())


class Library:
    """Paragraphs and their vectors.

    Attributes:
        paragraphs: what is searched.
        vectors: float32[n, n_embd], each of length 1.
    """

    def __init__(self, session: pg.Session, folder: Path) -> None:
        self._session = session
        self.paragraphs = list(paragraphs(folder))
        self.vectors = self._embed([f"{p.heading}\n{p.text}" for p in self.paragraphs])

    def search(self, question: str, k: int) -> list[tuple[float, Paragraph]]:
        """The k paragraphs of the greatest cosine to a question, the greatest first."""
        cosines = self.vectors @ self._embed([question])[0]
        best = np.argsort(-cosines, kind="stable")[:k]
        return [(float(cosines[i]), self.paragraphs[i]) for i in best]

    def _embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        model = self._session.model
        return self._session.embed([model.tokenize(text)[:MOST_TOKENS] for text in texts])


def prompt_of(
    session: pg.Session, question: str, found: list[tuple[float, Paragraph]], *, max_tokens: int
) -> list[dict[str, str]]:
    """A chat of the question, and before it the best paragraphs, as many as there is room for."""
    model, sources = session.model, ""
    messages = [{"role": "user", "content": question}]
    for _, paragraph in found:
        sources += f"{paragraph.page}: {paragraph.text}\n\n"
        content = f"{sources}Answer from the text above.\n\n{question}"
        longer = [{"role": "user", "content": content}]
        n_tokens = len(model.tokenize(model.chat_prompt(longer), parse_special=True))
        if n_tokens + max_tokens > session.n_ctx:
            break
        messages = longer
    return messages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a GGUF file that answers")
    parser.add_argument("folder", type=Path)
    parser.add_argument("question")
    parser.add_argument("--embedder", help="a GGUF file that embeds, in place of the model")
    parser.add_argument("--k", type=int, default=4, help="how many paragraphs to find")
    parser.add_argument("--max-tokens", type=int, default=200)
    arguments = parser.parse_args()
    with pg.Session(arguments.model) as session:
        if arguments.embedder is None:
            found = Library(session, arguments.folder).search(arguments.question, arguments.k)
        else:
            with pg.Session(arguments.embedder) as embedder:
                found = Library(embedder, arguments.folder).search(arguments.question, arguments.k)
        for cosine, paragraph in found:
            beginning = textwrap.shorten(paragraph.text, 70)
            print(f"{cosine:.3f}  {paragraph.page}: {beginning}")
        print()
        messages = prompt_of(session, arguments.question, found, max_tokens=arguments.max_tokens)
        for chunk in session.stream_chat(messages, max_tokens=arguments.max_tokens):
            print(chunk.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
