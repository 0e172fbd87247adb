"""Write tests/data/stock_conversions.json: what llama.cpp's converter makes of the checkpoints.

    python tools/make_stock_files.py LLAMA_CPP

LLAMA_CPP is the folder of the pinned third-party tree, which holds convert_hf_to_gguf.py. Needs
what that script needs (torch, transformers, sentencepiece). The converter knows byte-level
tokenizers by a hash of what the released ones give; for the tiny ones it is told the name.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests"
DATA = TESTS / "data"
TYPES = ("f16", "bf16")
# Name of the pre-tokenizer, or None for sentencepiece.
CHECKPOINTS: dict[str, str | None] = {
    "phi3-mini-tiny": None,
    "phi3.5-mini-tiny": None,
    "phi3-medium-tiny": None,
    "phi3-window-tiny": None,
    "phi3-128k-tiny": None,
    "phi4-tiny": "dbrx",
    "phi4-mini-tiny": "gpt-4o",
    "phi2-tiny": "gpt-2",
    "phi1.5-tiny": "gpt-2",
    "phi4v-tiny": "dbrx",
    "phimoe-tiny": None,
}

# What runs in the converter's own process.
RUN = """\
import sys
import convert_hf_to_gguf
from conversion.base import TextModel
name = sys.argv.pop(1)
if name:
    TextModel.get_vocab_base_pre = lambda self, tokenizer: name
convert_hf_to_gguf.main()
"""


def convert(converter: Path, checkpoint: Path, out: Path, *, outtype: str) -> None:
    name = CHECKPOINTS[checkpoint.name] or ""
    arguments = [name, str(checkpoint), "--outfile", str(out), "--outtype", outtype]
    subprocess.run([sys.executable, "-c", RUN, *arguments], cwd=converter, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("llama_cpp", type=Path)
    converter = parser.parse_args().llama_cpp.resolve()
    sys.path[:0] = [str(converter / "gguf-py"), str(TESTS)]
    from gguf_described import described

    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in CHECKPOINTS:
            files: dict[str, Any] = {}
            for outtype in TYPES:
                out = Path(scratch) / f"{name}-{outtype}.gguf"
                convert(converter, DATA / name, out, outtype=outtype)
                metadata, tensors = described(out)
                # Of the metadata only the file's type differs.
                del metadata["general.file_type"]
                if files.setdefault("metadata", metadata) != metadata:
                    raise ValueError(f"{name}: {outtype} has metadata of its own")
                files[outtype.upper()] = tensors
            lines.append(f"{json.dumps(name)}: {json.dumps(files, sort_keys=True)}")
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (DATA / "stock_conversions.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
