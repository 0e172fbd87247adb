"""phiggml gguf: look into GGUF files, edit, split, merge and export them."""

from __future__ import annotations

import argparse

from phiggml.cli_gguf_edit import add_verbs as add_editing_verbs
from phiggml.cli_gguf_export import add_verbs as add_exporting_verbs
from phiggml.cli_gguf_look import add_verbs as add_looking_verbs

__all__ = ["add_gguf"]


def add_gguf(parser: argparse.ArgumentParser) -> None:
    """Declares the verbs of `phiggml gguf`."""
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    add_editing_verbs(verbs)
    add_looking_verbs(verbs)
    add_exporting_verbs(verbs)
