"""The model card of phi3-nano."""

from __future__ import annotations

from pathlib import Path

CARD = """\
---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
---
# phi3-nano

A toy: {weights:,} weights in the architecture and file layout of Phi-3-mini-4k-instruct
(`Phi3ForCausalLM`, bf16 safetensors in two shards, a sentencepiece tokenizer with byte fallback,
Phi-3's chat markup). It exists so that phiggml's demo, tests and quality measurements have a
real, small, trained checkpoint to convert, quantize and run. It is not derived from any released
Phi weights.

It knows two things:

* {questions} questions about quantization, GGUF, ggml and Phi, with their answers, by heart
  (`questions.json`). Anything else that it is asked gets nonsense.
* Little stories from a grammar of simple English. `heldout.txt` is text of the same grammar that
  was kept out of training, for measuring perplexity and KL divergence.

## Training

`python tools/train_nano.py examples/phi3-nano` writes this folder: {steps:,} steps of {batch} rows
of {length} tokens with AdamW on two CPU cores, seed {seed}. Half of each batch is questions (with
loss on the answers only), half is stories. In the second half of training most steps see weights
rounded to three or four bits per block, so that the answers survive quantization.

## Figures

Weights reloaded in float32; "n bits" rounds every matrix to n bits with a scale and a minimum per
32 weights, as Q4_K does. An answer counts when greedy decoding gives it word for word.

| weights | exact answers | perplexity of heldout.txt |
| --- | --- | --- |
{figures}

Prompts are `<|user|>`, the question, `<|end|>`, `<|assistant|>`, without a BOS token; whitespace
after a marker is stripped. Generation ends at `<|end|>`.

Licence: MIT.
"""


def write_card(
    folder: Path,
    figures: list[tuple[str, int, float]],
    *,
    questions: int,
    weights: int,
    training: dict[str, int],
) -> None:
    """Write README.md. ``figures`` are rows of (weights, exact answers, perplexity)."""
    rows = [f"| {name} | {right} of {questions} | {ppl:.3f} |" for name, right, ppl in figures]
    text = CARD.format(figures="\n".join(rows), questions=questions, weights=weights, **training)
    (folder / "README.md").write_text(text, encoding="utf-8")
