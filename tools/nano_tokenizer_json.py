"""tokenizer.json of phi3-nano: the same tokenizer for readers of the tokenizers library."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from nano_tokenizer import ChatTokenizer

CONTROL = ("<unk>", "<s>", "</s>")


def merges_of(pieces: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, earlier pieces first.

    sentencepiece ranks a merge by its result, and its pieces are in the order of their merges.
    """
    merges = []
    for piece in pieces:
        splits = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        merges += [(left, right) for left, right in splits if left in pieces and right in pieces]
    return merges


def write_tokenizer_json(folder: Path, model: bytes) -> None:
    """Write tokenizer.json, with the normalizer and the decoder of the released one."""
    chat = ChatTokenizer(model)
    names = [chat.pieces.id_to_piece(i) for i in range(chat.size)]
    text_pieces = {
        name: i
        for i, name in enumerate(names)
        if not chat.pieces.is_byte(i) and name not in CONTROL
    }
    tokenizer = Tokenizer(
        BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=merges_of(text_pieces),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in CONTROL[:2]])
    tokenizer.add_tokens([AddedToken(CONTROL[2], rstrip=True, normalized=False)])
    tokenizer.add_special_tokens(
        [
            AddedToken(marker, rstrip=marker != "<|endoftext|>", normalized=False)
            for marker in chat.markers
        ]
    )
    for marker, i in chat.markers.items():
        if tokenizer.token_to_id(marker) != i:
            raise ValueError(f"tokenizer.json: {marker} has another id than {i}")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
