"""Tar shards as webdataset writes them: members of one stem (`000017.jpg`, `000017.txt`, `000017.json`) are one row.

The headers are gone through once; what is kept of a member is where it lies.
"""

from __future__ import annotations

import tarfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.build.layouts.layout import Layout, SourceRow, described, in_our_words, take_licence
from training.build.layouts.open_file import OpenFile
from training.build.layouts.pictures import PICTURES, Names
from training.data.inputs import check_fields, check_picture, dialogue_turns, parsed
from training.errors import BadData, BadSample

_TEXTS = (".txt", ".caption")


class _Members:
    """Of all tars: each row's tar, first member and stem; each member's suffix and where it lies."""

    def __init__(self) -> None:
        self.tar_N, self.first_N1 = array("i"), array("q", [0])
        self.offset_M, self.size_M, self.suffix_M = array("q"), array("q"), array("h")
        self.suffixes: list[str] = []
        self.stems: list[str] = []

    def scan(self, number: int, path: Path) -> None:
        """Adds a tar's rows. Raises BadData when it is no plain tar."""
        stem = None
        try:
            with tarfile.open(path, "r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it keeps a kilobyte of each
                    if not member.isfile():
                        continue
                    base, suffix = _split(member.name)
                    if base != stem:
                        self._end_row()
                        stem = base
                        self.tar_N.append(number)
                        self.stems.append(base)
                    self._add(suffix, member.offset_data, member.size)
        except (OSError, tarfile.TarError) as error:
            raise BadData(f"{path} is no plain tar (unpack a compressed one first): {error}") from error
        self._end_row()

    def _add(self, suffix: str, offset: int, size: int) -> None:
        if suffix not in self.suffixes:
            self.suffixes.append(suffix)
        self.suffix_M.append(self.suffixes.index(suffix))
        self.offset_M.append(offset)
        self.size_M.append(size)

    def _end_row(self) -> None:
        if len(self.first_N1) == len(self.tar_N):
            self.first_N1.append(len(self.offset_M))


def open_tars(path: Path, language: str) -> Layout:
    """One tar, or all of a folder in the order of their names. Raises BadData."""
    paths = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    members = _Members()
    for number, one in enumerate(paths):
        members.scan(number, one)
    stems = Names.of(members.stems)
    members.stems.clear()
    handles = [OpenFile(one) for one in paths]

    def read(number: int) -> SourceRow:
        tar, stem = members.tar_N[number], stems[number]
        key = f"{paths[tar].name}:{stem}"
        parts: list[tuple[str, bytes]] = []
        for member in range(members.first_N1[number], members.first_N1[number + 1]):
            content = handles[tar].read(members.offset_M[member], members.size_M[member])
            parts.append((members.suffixes[members.suffix_M[member]], content))
        fields, images = _row(key, parts, language)
        licence = take_licence(fields)
        check_fields(key, fields)
        return SourceRow(key, paths[tar].name, stem, fields, images, licence)

    return Layout("tar", len(members.tar_N), read, tuple(described(one) for one in paths))


def _row(key: str, parts: Sequence[tuple[str, bytes]], language: str) -> tuple[dict[str, Any], list[bytes]]:
    """Fields and pictures of one stem's members; a caption in a .txt counts before that of a .json."""
    fields: dict[str, Any] = {}
    images: list[bytes] = []
    for suffix, content in parts:
        if suffix.endswith(PICTURES):
            images.append(check_picture(key, content, suffix))
        elif suffix.endswith(".json"):
            value = parsed(key, content)
            if not isinstance(value, dict):
                raise BadSample(key, f"wrong JSON: a record is an object, not {type(value).__name__}")
            fields = {**in_our_words(value), **fields}
        elif suffix.endswith(_TEXTS):
            try:
                fields["caption"] = content.decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise BadSample(key, f"wrong text: {suffix} is not UTF-8") from error
    said = fields.pop("conversations", None)
    if said is not None:
        fields["dialogue"] = {"turns": dialogue_turns(key, said, len(images), language)}
    return fields, images


def _split(name: str) -> tuple[str, str]:
    """A stem ends at the first dot of the last part of the path, as in webdataset."""
    folder, _, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return f"{folder}/{stem}" if folder else stem, (dot + suffix).lower()
