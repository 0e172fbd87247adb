"""How many of phi3-nano's questions each type answers word for word, greedily.

python benchmarks/bench_answers.py [--types F16 Q8_0 Q4_K_M] [--show]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import phiggml as pg
from machine import describe

NANO = Path(__file__).resolve().parent.parent / "examples" / "phi3-nano"


def wrong_answers(path: Path, questions: list[dict[str, str]]) -> list[tuple[str, str, str]]:
    """(question, expected, found) of each answer that differs."""
    wrong = []
    with pg.Session(path, n_ctx=512) as session:
        for case in questions:
            found = session.chat(
                [{"role": "user", "content": case["question"]}],
                max_tokens=200,
                sampling=pg.Sampling(temperature=0),
            )
            if found.text != case["answer"]:
                wrong.append((case["question"], case["answer"], found.text))
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", nargs="+", default=["F16", "Q8_0", "Q4_K_M"])
    parser.add_argument("--show", action="store_true", help="print the answers that differ")
    arguments = parser.parse_args()
    questions = json.loads((NANO / "questions.json").read_text("utf-8"))
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        for type in arguments.types:
            path = Path(folder) / f"{type}.gguf"
            pg.convert(NANO, path, type)
            start = time.perf_counter()
            wrong = wrong_answers(path, questions)
            right = len(questions) - len(wrong)
            seconds = time.perf_counter() - start
            share = right / len(questions)
            print(f"{type:8} {right}/{len(questions)} right, {share:.1%}, {seconds:.1f} s")
            for question, expected, found in wrong if arguments.show else ():
                print(f"  {question}\n    expected {expected!r}\n    found    {found!r}")


if __name__ == "__main__":
    main()
