"""Rows of a JSONL file or of a JSON list: records of ours, tables with a column of image paths, LLaVA's dialogues."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.build.layouts.json_elements import JsonFile
from training.build.layouts.layout import Layout, SourceRow, described, in_our_words, take_licence
from training.build.layouts.open_file import OpenFile
from training.data.inputs import entry, parsed
from training.errors import BadData, BadSample

_MARK = b"\xef\xbb\xbf"


def open_json(path: Path, language: str, images: Path | None) -> Layout:
    """A file of one object a line, or one list of objects. Raises BadData."""
    try:
        with path.open("rb") as file:
            is_list = file.read(64).removeprefix(_MARK).lstrip().startswith(b"[")
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}") from error
    return _list(path, language, images) if is_list else _lines(path, language, images)


def _list(path: Path, language: str, images: Path | None) -> Layout:
    file = JsonFile(path)
    elements = file.lists[""]

    def read(number: int) -> SourceRow:
        key = f"{path.name}[{number}]"
        return _row(key, path, number, parsed(key, file.element(elements, number)), language=language, images=images)

    return Layout("json", len(elements), read, (described(path),))


def _lines(path: Path, language: str, images: Path | None) -> Layout:
    number_N, offset_N, size_N = array("q"), array("q"), array("q")
    offset = 0
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.isspace():
                number_N.append(number)
                offset_N.append(offset)
                size_N.append(len(text))
            offset += len(text)
    source = OpenFile(path)

    def read(row: int) -> SourceRow:
        key = f"{path.name}:{number_N[row]}"
        text = source.read(offset_N[row], size_N[row]).removeprefix(_MARK)
        return _row(key, path, number_N[row], parsed(key, text), language=language, images=images)

    return Layout("json", len(number_N), read, (described(path),))


def _row(key: str, path: Path, place: int, value: Any, *, language: str, images: Path | None) -> SourceRow:
    if not isinstance(value, Mapping):
        raise BadSample(key, f"wrong JSON: a record is an object, not {type(value).__name__}")
    given = in_our_words(value)
    licence = take_licence(given)
    fields, pictures = entry(key, given, language=language, images=images or path.parent)
    return SourceRow(key, path.name, place, fields, pictures, licence)
