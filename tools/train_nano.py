"""Train phi3-nano, the demo model, and write its complete checkpoint folder.

    python tools/train_nano.py examples/phi3-nano

Needs torch, transformers, sentencepiece and safetensors; a quarter of an hour on two cores.
Half of every batch is the questions of nano_questions.txt in chat form, half is stories from
nano_corpus.py. In the second half of training most steps see weights rounded to three or four
bits, so that the answers survive quantization.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Phi3ForCausalLM

from nano_card import write_card
from nano_checkpoint import bfloat16_tensors, new_model, write_config, write_index, write_shards
from nano_corpus import stories
from nano_rounding import rounded
from nano_tokenizer import (
    PRINTABLE_ASCII,
    ChatTokenizer,
    train_pieces,
    write_generation_config,
    write_tokenizer,
)
from nano_tokenizer_json import write_tokenizer_json

HERE = Path(__file__).parent
IGNORED = -100  # label of a position that has no loss
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful AI assistant.",
    "Answer briefly.",
    "You answer questions about quantization.",
)


@dataclass(frozen=True)
class Training:
    """What one training run is made of."""

    seed: int = 20240423
    pieces: int = 2000
    words: int = 320_000
    heldout_words: int = 20_000
    steps: int = 5000
    batch: int = 8
    length: int = 256
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.05
    rounding_from: float = 0.5
    rounding_share: float = 0.75
    bits: tuple[int, ...] = (3, 4, 4)
    threads: int = 2


def read_questions(path: Path) -> list[dict[str, str]]:
    """Parse blocks of two lines, ``Q: ...`` and ``A: ...``, separated by empty lines."""
    questions = []
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        question, answer = block.split("\n")
        questions.append({"question": question[len("Q: ") :], "answer": answer[len("A: ") :]})
    return questions


def casual(question: str, rng: random.Random) -> str:
    """The question as a hurried user might type it."""
    if rng.random() < 0.5:
        question = question.lower()
    return question.rstrip("?")


class Corpus:
    """Endless packed batches: chats (loss on the answers only) and stories."""

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        questions: list[dict[str, str]],
        texts: list[str],
        settings: Training,
    ) -> None:
        self.rng = random.Random(settings.seed)
        self.settings = settings
        self.tokenizer = tokenizer
        self.questions = questions
        self.texts: list[list[int]] = []
        while texts:
            count = self.rng.randint(1, 4)
            self.texts.append(tokenizer.encode("\n".join(texts[:count])))
            texts = texts[count:]
        self.chat_stream = self._chats()
        self.story_stream = self._stories()

    def _chats(self) -> Iterator[tuple[list[int], list[int]]]:
        """Every question once per round, in new orders; some conversations have two turns."""
        end = self.tokenizer.markers["<|endoftext|>"]
        while True:
            order = self.rng.sample(self.questions, len(self.questions))
            for item in order:
                question = item["question"]
                if self.rng.random() < 0.15:
                    question = casual(question, self.rng)
                prompt = self.tokenizer.prompt(question)
                if self.rng.random() < 0.1:
                    prompt = self.tokenizer.turn("system", self.rng.choice(SYSTEM_PROMPTS)) + prompt
                answer = self.tokenizer.turn("assistant", item["answer"])[1:]
                ids, labels = prompt + answer, [IGNORED] * len(prompt) + answer
                if self.rng.random() < 0.75:
                    ids, labels = [*ids, end], [*labels, IGNORED]
                yield ids, labels

    def _stories(self) -> Iterator[tuple[list[int], list[int]]]:
        """Texts of one to four stories, a third of them without their first part."""
        end = self.tokenizer.markers["<|endoftext|>"]
        while True:
            for ids in self.rng.sample(self.texts, len(self.texts)):
                start = self.rng.randrange(len(ids)) if self.rng.random() < 1 / 3 else 0
                yield [*ids[start:], end], [*ids[start:], end]

    def _row(self, stream: Iterator[tuple[list[int], list[int]]]) -> tuple[list[int], list[int]]:
        """One row of whole texts, the last of which is cut off."""
        row: list[int] = []
        labels: list[int] = []
        while len(row) < self.settings.length:
            more, more_labels = next(stream)
            row += more
            labels += more_labels
        return row[: self.settings.length], labels[: self.settings.length]

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        half = self.settings.batch // 2
        rows = [self._row(self.chat_stream) for _ in range(half)]
        rows += [self._row(self.story_stream) for _ in range(self.settings.batch - half)]
        return torch.tensor([ids for ids, _ in rows]), torch.tensor([label for _, label in rows])


def learning_rate(step: int, settings: Training) -> float:
    """Linear warm-up, then a cosine to one fiftieth of the peak."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    part = (step - settings.warmup) / (settings.steps - settings.warmup)
    return settings.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part)))


def loss_of(model: Phi3ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the next tokens, with bf16 matrix products."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED
    )


def train(model: Phi3ForCausalLM, corpus: Corpus, settings: Training) -> None:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )
    rng = random.Random(settings.seed + 1)
    start = time.monotonic()
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        late = step >= settings.rounding_from * settings.steps
        rounding = late and rng.random() < settings.rounding_share
        ids, labels = corpus.batch()
        with rounded(model, rng.choice(settings.bits)) if rounding else nullcontext():
            loss = loss_of(model, ids, labels)
            torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == settings.steps - 1:
            seconds = time.monotonic() - start
            print(
                f"step {step:5} of {settings.steps}  {seconds:6.0f} s  loss {loss:.4f}", flush=True
            )


@torch.no_grad()
def exact_answers(
    model: Phi3ForCausalLM, tokenizer: ChatTokenizer, questions: list[dict[str, str]]
) -> list[bool]:
    """Which questions greedy decoding answers word for word.

    It does so exactly when every token of the answer is the most likely one after the tokens
    before it, so one pass over question and answer decides.
    """
    exact = []
    for item in questions:
        prompt = tokenizer.prompt(item["question"])
        answer = tokenizer.turn("assistant", item["answer"])[1:]
        logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0]
        best = logits[len(prompt) - 1 : -1].argmax(-1)
        exact.append(best.tolist() == answer)
    return exact


@torch.no_grad()
def perplexity(model: Phi3ForCausalLM, ids: list[int], *, length: int = 256) -> float:
    """Perplexity in windows of ``length`` tokens, each from an empty context."""
    windows = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    losses = [
        torch.nn.functional.cross_entropy(
            model(input_ids=part, use_cache=False).logits[:, :-1].flatten(0, 1),
            part[:, 1:].flatten(),
        )
        for part in torch.split(windows, 8)
    ]
    return math.exp(torch.stack(losses).mean().item())


def report(folder: Path, tokenizer: ChatTokenizer, settings: Training) -> None:
    """Evaluate the written checkpoint, reloaded in float32, and write its model card."""
    model = Phi3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    questions = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    heldout = tokenizer.encode((folder / "heldout.txt").read_text(encoding="utf-8"))
    weights = sum(p.numel() for p in model.parameters())
    print(f"{weights:,} weights, {len(heldout):,} held-out tokens")
    figures = []
    for bits in (None, 8, 5, 4, 3, 2):
        with rounded(model, bits) if bits else nullcontext():
            right = sum(exact_answers(model, tokenizer, questions))
            figures.append((f"{bits} bits" if bits else "bf16", right, perplexity(model, heldout)))
        name, right, ppl = figures[-1]
        print(f"{name}: {right} exact answers, held-out perplexity {ppl:.3f}", flush=True)
    write_card(
        folder,
        figures,
        questions=len(questions),
        weights=weights,
        training={k: getattr(settings, k) for k in ("steps", "batch", "length", "seed")},
    )


def split_texts(settings: Training) -> tuple[list[str], list[str]]:
    """Stories for training, and held-out ones of about ``heldout_words`` words."""
    texts = stories(settings.words, settings.seed)
    words = 0
    for i, text in enumerate(texts):
        words += len(text.split())
        if words >= settings.heldout_words:
            return texts[i + 1 :], texts[: i + 1]
    raise ValueError("the corpus is smaller than its held-out part")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="checkpoint folder to write")
    parser.add_argument("--steps", type=int, default=Training.steps)
    arguments = parser.parse_args()
    settings = Training(steps=arguments.steps)
    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)

    questions = read_questions(HERE / "nano_questions.txt")
    texts, heldout = split_texts(settings)
    # Twenty copies of the questions: their words are as frequent as those of the stories.
    chats = [text for item in questions for text in item.values()] * 20
    pieces = train_pieces(chats + texts, size=settings.pieces, required=PRINTABLE_ASCII)
    tokenizer = ChatTokenizer(pieces)
    write_tokenizer(folder, pieces, max_length=4096)
    write_tokenizer_json(folder, pieces)
    write_generation_config(folder, pieces)
    text = json.dumps(questions, indent=1, ensure_ascii=False) + "\n"
    (folder / "questions.json").write_text(text, encoding="utf-8")
    (folder / "heldout.txt").write_text("\n".join(heldout) + "\n", encoding="utf-8")

    eos = tokenizer.markers["<|endoftext|>"]
    model = new_model(tokenizer.padded_size, eos_token_id=eos)
    corpus = Corpus(tokenizer, questions, texts, settings)
    print(
        f"{len(questions)} questions, {sum(map(len, corpus.texts)):,} tokens of stories, "
        f"{tokenizer.padded_size} embedding rows",
        flush=True,
    )
    train(model, corpus, settings)
    write_config(folder, rows=tokenizer.padded_size, eos_token_id=eos)
    tensors = bfloat16_tensors(model)
    write_index(folder, tensors, write_shards(folder, tensors, shards=2))
    report(folder, tokenizer, settings)


if __name__ == "__main__":
    main()
