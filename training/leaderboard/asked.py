"""The questions that all models are asked, about pictures, in one or both languages.

A line of JSON each: `id` (or `question_id`), `question` (or `text`), `image` or `images`, and if there is one a
`reference` answer for the judge. Where a question has texts in both languages, {"en": …, "zh": …}, it is two questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import BadData, BadSample
from training.scoring.files import read_text
from training.scoring.url_target import data_url

LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Asked:
    """`key` is the id, with the language where there are two of it. `images` are files."""

    key: str
    text: str
    language: str
    images: tuple[Path, ...]
    reference: str = ""

    def pictures(self) -> list[dict[str, Any]]:
        """The pictures as OpenAI's message parts. Raises BadData for one that cannot be read."""
        try:
            return [
                {"type": "image_url", "image_url": {"url": data_url(str(path), path.read_bytes())}}
                for path in self.images
            ]
        except (OSError, BadSample) as error:
            raise BadData(f"question {self.key}: {error}") from error


def read_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each object stands, and the object. Raises BadData."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadData(f"{where}: not JSON: {error}") from error
        if not isinstance(found, dict):
            raise BadData(f"{where}: not an object")
        yield where, found


def read_asked(path: Path, folder: Path | None = None) -> list[Asked]:
    """In the file's order. Pictures' names start at `folder`, by default where the file lies. Raises BadData."""
    found: dict[str, Asked] = {}
    for where, line in read_lines(path):
        for one in _asked(where, line, folder or path.parent):
            if one.key in found:
                raise BadData(f"{where}: there is a question {one.key} already")
            found[one.key] = one
    if not found:
        raise BadData(f"{path}: no questions")
    return list(found.values())


def identity(where: str, line: Mapping[str, Any]) -> str:
    """Raises BadData."""
    name = line.get("id", line.get("question_id"))
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise BadData(f"{where}: `id` must be a text or a number")
    return str(name)


def texts(where: str, line: Mapping[str, Any], *names: str) -> dict[str, str]:
    """The first of the fields that is there, by language; "" for a text without one. Raises BadData."""
    name = next((name for name in names if name in line), None)
    if name is None:
        raise BadData(f"{where}: `{names[0]}` is missing")
    found = {"": line[name]} if isinstance(line[name], str) else line[name]
    if not isinstance(found, dict) or not found or not set(found) <= {"", *LANGUAGES}:
        raise BadData(f'{where}: `{name}` must be a text, or {{"en": …, "zh": …}}')
    for text in found.values():
        if not isinstance(text, str):
            raise BadData(f"{where}: `{name}` must hold texts")
    return found


def _asked(where: str, line: Mapping[str, Any], folder: Path) -> Iterator[Asked]:
    name, said = identity(where, line), texts(where, line, "question", "text")
    references = texts(where, line, "reference") if line.get("reference") else {}
    images = _images(where, line, folder)
    for language, text in said.items():
        if not text.strip():
            raise BadData(f"{where}: an empty question")
        spoken = language or line.get("language") or language_of(text)
        if spoken not in LANGUAGES:
            raise BadData(f"{where}: `language` must be en or zh")
        reference = references.get(spoken, references.get("", ""))
        yield Asked(f"{name}/{language}" if len(said) > 1 else name, text, spoken, images, reference)


def _images(where: str, line: Mapping[str, Any], folder: Path) -> tuple[Path, ...]:
    names = line.get("images", line.get("image"))
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadData(f"{where}: `image` must be the name of a file, or `images` a list of names")
    paths = tuple(folder / name for name in names)
    for path in paths:
        if not path.is_file():
            raise BadData(f"{where}: there is no {path}")
    return paths


def language_of(text: str) -> str:
    """By script: Chinese where a fifth of the characters are."""
    chinese = sum("一" <= character <= "鿿" for character in text)
    return "zh" if chinese * 5 >= len(text.strip()) else "en"
