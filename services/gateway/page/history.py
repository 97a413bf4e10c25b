"""A conversation as the browser holds it, turned into messages of the API.

The browser sends the whole conversation with each question, so a file's path in it is a stranger's word: only files in
the page's own folder are read. A question that got no answer, or only an error, is left out with it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ziya.errors import InvalidImage
from ziya.images import ImageLimits, inspect

Message = dict[str, Any]


class LostImage(Exception):
    """A picture that is no longer there, or never was the page's."""


class NotImage(Exception):
    """A file that the gateway would not take; the name is the visitor's own."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Images:
    """Reads the visitors' files in `folder`; `limit` in bytes."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limits = folder.resolve(), ImageLimits(max_bytes=limit)

    def part(self, path: str) -> Message:
        """A file as a part of a message. Raises LostImage or NotImage."""
        place = Path(path).resolve()
        if not place.is_relative_to(self._folder):
            raise LostImage
        try:
            data = place.read_bytes()
        except OSError:
            raise LostImage from None
        try:
            kind, _, _ = inspect(data, self._limits)
        except InvalidImage:
            raise NotImage(place.name) from None
        url = f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}


def messages_of(history: Sequence[Mapping[str, Any]], images: Images) -> list[Message]:
    """The answered turns of `history`. Raises LostImage or NotImage."""
    turns: list[Message] = []
    asked: Any = None
    for message in history:
        if message["role"] == "user":
            asked = message["content"]
            continue
        failed = bool((message.get("metadata") or {}).get("title"))
        text = "".join(_texts(message["content"]))
        if asked and text and not failed:
            question = {"role": "user", "content": list(_parts(asked, images))}
            turns += [question, {"role": "assistant", "content": text}]
        asked = None
    return turns


def question_of(text: str, files: Iterable[str], images: Images) -> Message:
    """The last message. Raises LostImage or NotImage."""
    parts = [images.part(path) for path in files]
    return {"role": "user", "content": [*parts, *([{"type": "text", "text": text}] if text else [])]}


def _parts(content: Any, images: Images) -> Iterator[Message]:
    for part in _listed(content):
        if part.get("type") == "text":
            yield {"type": "text", "text": part["text"]}
        elif part.get("type") == "file":
            yield images.part(part["file"]["path"])


def _texts(content: Any) -> Iterator[str]:
    return (part["text"] for part in _listed(content) if part.get("type") == "text")


def _listed(content: Any) -> list[Message]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]
