"""Where the elements of a JSON file's lists lie, found without building the file's objects.

A file of a million annotations is a gigabyte of Python objects and sixteen megabytes of offsets. Only strings and
brackets matter for finding where an element ends; each element is parsed when it is read.
"""

from __future__ import annotations

import json
import mmap
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.build.layouts.open_file import OpenFile
from training.errors import BadData

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)
_MARK = b"\xef\xbb\xbf"


@dataclass
class Elements:
    """Offsets and sizes of one list's elements, in bytes of the file."""

    offset: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        return len(self.offset)

    def add(self, start: int, end: int) -> None:
        self.offset.append(start)
        self.size.append(end - start)


class JsonFile:
    """A JSON file whose top is a list, or an object with lists. Raises BadData when it is neither."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = OpenFile(path)
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self.lists = _found(data, path)
                self.subtype = _value(data, "data_subtype")
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise BadData(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is empty'}") from error

    def element(self, elements: Elements, number: int) -> bytes:
        return self._file.read(elements.offset[number], elements.size[number])

    def objects(self, name: str) -> Iterator[Any]:
        """The elements of the list `name`, parsed one after another. Raises BadData."""
        elements = self.lists.get(name, Elements())
        for number in range(len(elements)):
            try:
                yield json.loads(self.element(elements, number))
            except ValueError as error:
                raise BadData(f"{self.path}: {name}[{number}] is not JSON: {error}") from error


def _value(data: mmap.mmap, name: str) -> str:
    """A short text beside the lists; empty where there is none."""
    found = re.search(rb'"%s"\s*:\s*("[^"\\]*")' % re.escape(name.encode()), data)
    return str(json.loads(found[1])) if found else ""


def _found(data: mmap.mmap, path: Path) -> dict[str, Elements]:
    """The top's lists by name; a top that is a list itself has the name ""."""
    start = len(_MARK) if data[: len(_MARK)] == _MARK else 0
    tokens = _TOKEN.finditer(data, start)
    first = next(tokens, None)
    if first is None or first[0] not in (b"[", b"{") or data[start : first.start()].strip():
        raise BadData(f"{path} is not a JSON list or object")
    lists: dict[str, Elements] = {}
    ended = False
    if first[0] == b"[":
        lists[""], _, ended = _elements(data, tokens, first.end())
    else:
        ended = _members(data, tokens, lists)
    if not ended:
        raise BadData(f"{path} is not a whole JSON file: its end is missing")
    return lists


def _members(data: mmap.mmap, tokens: Iterator[re.Match[bytes]], lists: dict[str, Elements]) -> bool:
    """Fills `lists` with those of the top's object; tells whether it was closed."""
    depth, name = 1, ""
    for token in tokens:
        kind = token[0]
        if kind == b"[" and depth == 1:
            lists[name], _, ended = _elements(data, tokens, token.end())
            if not ended:
                return False
        elif kind in b"{[":
            depth += 1
        elif kind in b"}]":
            depth -= 1
            if depth == 0:
                return True
        elif depth == 1:
            name = kind[1:-1].decode("utf-8", "replace")
    return False


def _elements(data: mmap.mmap, tokens: Iterator[re.Match[bytes]], begin: int) -> tuple[Elements, int, bool]:
    """The elements up to the list's end, where the list ends, and whether it does."""
    found, depth, start, last = Elements(), 0, begin, begin
    for token in tokens:
        kind = token[0]
        if kind in (b"{", b"["):
            if depth == 0:
                _add_plain(data, found, last, token.start())
                start = token.start()
            depth += 1
        elif kind in (b"}", b"]"):
            if depth == 0:
                _add_plain(data, found, last, token.start())
                return found, token.end(), kind == b"]"
            depth -= 1
            if depth == 0:
                found.add(start, token.end())
                last = token.end()
    return found, last, False


def _add_plain(data: mmap.mmap, found: Elements, start: int, end: int) -> None:
    """Elements without brackets (numbers, texts) stand between the others, and must not be lost in silence."""
    if end - start < 3 and data[start:end].strip() in (b"", b","):
        return
    at = start
    for part in re.split(rb'((?:"[^"\\]*(?:\\.[^"\\]*)*"|[^",])+)', data[start:end]):
        if part.strip(b", \t\r\n"):
            found.add(at, at + len(part))
        at += len(part)
