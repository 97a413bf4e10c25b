"""Entries that every gate let pass but one: what a piece has nearly the same of in an earlier piece it cannot know.

    rows.jsonl                  an entry a line: where it stands in the piece's records, and what a report would show
    texts.bin, shingles.bin     its shingles and bands (training/gates/shelf.py), in the same order

They lie beside the piece's shards until the pieces are joined. What is dear is done here, in the piece.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from training.gates.duplicates import signed
from training.gates.row import Line, Row
from training.gates.shelf import Shelf, Text

_ROWS = "rows.jsonl"


@dataclass(frozen=True)
class Candidate:
    """Entry `place` of `field` in the piece's record number `record`. Its row has no picture but knows of one."""

    record: int
    field: str
    place: int
    digest: str
    has_image: bool
    row: dict[str, Any]

    @property
    def task(self) -> str:
        return str(self.row["task"])

    def read(self) -> Row:
        """The row, without its picture."""
        said = self.row
        made = {language: _lines(lines) for language, lines in said["made"].items()}
        return Row(
            said["key"], said["task"], said["language"], _lines(said["source"]), made, translated=said["translated"]
        )


class Candidates:
    """Writes those of one piece into `folder`, in the order of the rows. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._shelf = Shelf(folder)
        self._rows = (folder / _ROWS).open("w", encoding="ascii")

    def add(self, record: int, field: str, place: int, row: Row) -> None:
        said = {
            "key": row.key,
            "task": row.task,
            "language": row.language,
            "source": row.source,
            "made": row.made,
            "translated": row.translated,
        }
        # Escaped: halves of surrogate pairs must come through.
        self._rows.write(json.dumps([record, field, place, row.digest, row.image is not None, said]) + "\n")
        self._shelf.append(signed(row))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()
        self._shelf.close()


def read_candidates(folder: Path) -> Iterator[tuple[Candidate, list[Text]]]:
    """Those of a piece with their texts, one at a time."""
    with closing(Shelf(folder)) as shelf, (folder / _ROWS).open(encoding="ascii") as lines:
        for line, texts in zip(lines, shelf.read(), strict=True):
            yield Candidate(*json.loads(line)), texts


def _lines(said: list[list[str]]) -> tuple[Line, ...]:
    return tuple(Line(*line) for line in said)
