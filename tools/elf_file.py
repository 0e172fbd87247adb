"""What the loader reads of an ELF library: needed libraries, name, search path, sections."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["ElfFile", "read_elf"]

_SHT_SYMTAB, _SHT_DYNAMIC = 2, 6
_DT_NEEDED, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 1, 14, 15, 29


@dataclass(frozen=True)
class ElfFile:
    """A 64-bit little-endian library.

    Attributes:
        needed: libraries that it needs, in order.
        soname: the name under which others need it, or "".
        rpath: folders of DT_RPATH, which LD_LIBRARY_PATH does not override.
        runpath: folders of DT_RUNPATH.
        sections: names of its sections.
        has_symbols: whether it carries a symbol table beside the loader's.
    """

    needed: tuple[str, ...]
    soname: str
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]
    sections: tuple[str, ...]
    has_symbols: bool


@dataclass(frozen=True)
class _Section:
    name: int
    type: int
    offset: int
    size: int
    link: int


def read_elf(data: bytes) -> ElfFile:
    """Reads a library's bytes.

    Raises:
        ValueError: they are no 64-bit little-endian ELF file with sections.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no 64-bit little-endian ELF file")
    try:
        sections = list(_sections(data))
        (index,) = struct.unpack_from("<H", data, 62)
        names = sections[index]
        entries = list(_dynamic_entries(data, sections))
    except (struct.error, IndexError) as fault:
        raise ValueError(f"a broken ELF file: {fault}") from None

    def texts(tag: int) -> tuple[str, ...]:
        return tuple(text for found, text in entries if found == tag)

    def folders(tag: int) -> tuple[str, ...]:
        return tuple(part for text in texts(tag) for part in text.split(":"))

    return ElfFile(
        needed=texts(_DT_NEEDED),
        soname="".join(texts(_DT_SONAME)),
        rpath=folders(_DT_RPATH),
        runpath=folders(_DT_RUNPATH),
        sections=tuple(_text(data, names.offset + section.name) for section in sections),
        has_symbols=any(section.type == _SHT_SYMTAB for section in sections),
    )


def _sections(data: bytes) -> Iterator[_Section]:
    (start,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    for i in range(count):
        name, type, _, _, offset, n_bytes, link = struct.unpack_from(
            "<IIQQQQI", data, start + i * size
        )
        yield _Section(name, type, offset, n_bytes, link)


def _dynamic_entries(data: bytes, sections: list[_Section]) -> Iterator[tuple[int, str]]:
    """Tag and text of each entry that names something."""
    for section in sections:
        if section.type == _SHT_DYNAMIC:
            texts = sections[section.link].offset
            for at in range(section.offset, section.offset + section.size, 16):
                tag, value = struct.unpack_from("<QQ", data, at)
                if tag in (_DT_NEEDED, _DT_SONAME, _DT_RPATH, _DT_RUNPATH):
                    yield tag, _text(data, texts + value)


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()
