"""What a builder reads, whatever it lies in: rows by number, each read when it is asked for.

A layout knows where its rows lie (numbers in arrays, never an object a row), so that a million of them cost tens of
megabytes, and any of them can be read again after a restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from training.data.inputs import TEXT_FIELDS

_HASHED_WHOLE = 256 << 20
_ENDS = 1 << 20


@dataclass(frozen=True)
class SourceRow:
    """One row as the source has it, in a record's words (training/data/record.py) and its own language.

    `source` and `place` say where it stands: a file's name and a line, element or member. `licence` is what the source
    itself says of this row. `lacking` holds reasons ("kind: detail") why parts of the row were left out.
    """

    key: str
    source: str
    place: str | int
    fields: Mapping[str, Any]
    images: Sequence[bytes]
    licence: str | None = None
    lacking: tuple[str, ...] = ()

    @cached_property
    def image_digests(self) -> tuple[str, ...]:
        """SHA-256 of each picture's file."""
        return tuple(hashlib.sha256(image).hexdigest() for image in self.images)


@dataclass(frozen=True)
class Layout:
    """`count` rows, of which `read(n)` gives one or raises BadSample. `inputs` describe the files for a manifest."""

    kind: str
    count: int
    read: Callable[[int], SourceRow]
    inputs: tuple[Mapping[str, Any], ...]
    has_licences: bool = False

    @property
    def digest(self) -> str:
        """Of all that it reads, as far as `inputs` tell."""
        said = repr([sorted(one.items()) for one in self.inputs])
        return hashlib.sha256(f"{self.kind}\n{said}".encode()).hexdigest()


def described(path: Path, name: str | None = None) -> dict[str, Any]:
    """A file for the manifest: size and SHA-256; of a very large file that of its two ends, and it says so."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _HASHED_WHOLE:
            return {"file": name or path.name, "bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        ends = file.read(_ENDS)
        file.seek(-_ENDS, 2)
        sha256 = hashlib.sha256(ends + file.read()).hexdigest()
    return {"file": name or path.name, "bytes": size, "sha256_of_first_and_last_MiB": sha256}


def in_our_words(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields under the names that other people's files use, under a record's: one row of a table becomes a record.

    `text` or `captions` is a caption where there is none; `question` beside `answer` or `answers` is one `vqa`.
    """
    fields = dict(given)
    for other in ("captions", "text"):
        if "caption" not in fields and _is_text(fields.get(other)):
            fields["caption"] = fields.pop(other)
    if "vqa" not in fields and isinstance(fields.get("question"), str | dict):
        answer = fields.pop("answer", None) or fields.pop("answers", None)
        fields["vqa"] = {"question": fields.pop("question"), "answer": _commonest(answer)}
    # An empty column is no text at all; a text that is there but empty stays, to be refused by name.
    return {name: value for name, value in fields.items() if not (value is None and name in TEXT_FIELDS)}


def _is_text(value: Any) -> bool:
    return isinstance(value, str | dict) or (
        isinstance(value, list) and bool(value) and all(isinstance(one, str | dict) for one in value)
    )


def _commonest(answer: Any) -> Any:
    """Of several people's answers the one most gave, the earliest of equals."""
    if not isinstance(answer, list) or not answer:
        return answer
    texts = [one.get("answer") if isinstance(one, Mapping) else one for one in answer]
    return max(texts, key=texts.count)


def take_licence(fields: dict[str, Any]) -> str | None:
    """What the row itself says of its licence, taken out of its fields."""
    said = [fields.pop(name, None) for name in ("licence", "license")]
    return next((str(one) for one in said if one), None)
