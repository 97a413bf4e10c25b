"""A folder of pictures, and beside each a .txt (its caption) or a .json (its fields) of the same name."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from training.build.layouts.layout import Layout, SourceRow, in_our_words, take_licence
from training.data.inputs import checked, fields_beside
from training.errors import BadSample

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
_TEXTS = (".json", ".txt")


@dataclass(frozen=True)
class Names:
    """Many names in one string of bytes: a million paths in a few dozen megabytes."""

    joined: bytes
    end_N: array[int]

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        joined, ends = bytearray(), array("q")
        for name in names:
            joined += os.fsencode(name)
            ends.append(len(joined))
        return cls(bytes(joined), ends)

    def __len__(self) -> int:
        return len(self.end_N)

    def __getitem__(self, number: int) -> str:
        start = self.end_N[number - 1] if number else 0
        return os.fsdecode(self.joined[start : self.end_N[number]])


def open_pictures(folder: Path, language: str) -> Layout:
    """Pictures in the order of their names, then texts whose picture is lost: they must be told, not left out."""
    found = sorted(_walked(folder))
    digest = hashlib.sha256()
    for name, size in found:
        digest.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
    stems = {os.path.splitext(name)[0] for name, _ in found if _is(name, PICTURES)}
    lonely = (name for name, _ in found if _is(name, _TEXTS) and os.path.splitext(name)[0] not in stems)
    pictures = Names.of(name for name, _ in found if _is(name, PICTURES))
    texts = Names.of(lonely)
    inputs = ({"folder": folder.name, "files": len(found), "sha256_of_names_and_sizes": digest.hexdigest()},)

    def read(number: int) -> SourceRow:
        if number >= len(pictures):
            raise BadSample(texts[number - len(pictures)], "missing image: there is no picture of the same name")
        name = pictures[number]
        path = folder / name
        given = in_our_words(fields_beside(name, path, language))
        licence = take_licence(given)
        fields, images = checked(name, given, [path])
        return SourceRow(name, name, "", fields, images, licence)

    return Layout("folder", len(pictures) + len(texts), read, inputs)


def _walked(folder: Path) -> Iterator[tuple[str, int]]:
    """Names relative to the folder, and sizes, of pictures and texts."""
    for outer, folders, files in os.walk(folder):
        folders.sort()
        for name in files:
            if _is(name, (*PICTURES, *_TEXTS)):
                path = os.path.join(outer, name)
                yield os.path.relpath(path, folder), os.stat(path).st_size


def _is(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes)
