"""What a build tells of one piece, in pieces/<number>.json: what was read, what its shards hold, what the gates found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from training.data.index import Index, Shard
from training.data.places import place_of
from training.data.shards import Dataset
from training.data.writer import Labels, all_labels
from training.errors import BadData
from training.stage_folder import write_json

_FOLDER = "pieces"
Written = tuple[Shard, Labels]


@dataclass(frozen=True)
class Piece:
    """Plain JSON. `index` is that of the piece's shards alone, `labels` has the class names of each of them.

    `agreement` has the fingerprints of the checkpoint that scored texts and pictures, where one did.
    """

    piece: int
    rows: tuple[int, int]
    layout: str
    input: str
    inputs: Sequence[Mapping[str, Any]]
    agreement: Mapping[str, str] | None
    empty: int
    licences: Mapping[str, int]
    bad: Mapping[str, Any]
    tally: Mapping[str, Any]
    records: int = 0
    index: Mapping[str, Any] | None = None
    labels: Sequence[Labels] = ()

    @classmethod
    def read(cls, folder: Path, number: int) -> Self:
        """Raises BadData."""
        path = _path(folder, number)
        try:
            return cls(**json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise BadData(f"{path} cannot be read: {error}") from error

    def write(self, folder: Path) -> None:
        write_json(_path(folder, self.piece), asdict(self))

    def holding(self, written: Sequence[Written]) -> Self:
        """The same of these shards."""
        index = Index("", tuple(shard for shard, _ in written), {}, all_labels(labels for _, labels in written))
        labels = [dict(labels) for _, labels in written]
        return replace(self, records=index.samples, index=json.loads(index.to_bytes()), labels=labels)

    def without(self, licences: Counter[str], tally: Mapping[str, Any]) -> Self:
        """The same after records of these licences went, with the tally that says why."""
        left = {name: count - licences[name] for name, count in self.licences.items() if count > licences[name]}
        return replace(self, empty=self.empty + licences.total(), licences=left, tally=tally)

    @property
    def written(self) -> list[Written]:
        """Its shards with their class names. Raises BadData."""
        if not self.records:
            return []
        index = Index.from_bytes(json.dumps(self.index).encode(), f"{_FOLDER}/{self.piece:05d}.json")
        return list(zip(index.shards, self.labels, strict=True))

    def dataset(self, folder: Path) -> Dataset:
        """Its records and pictures, of the shards in `folder`."""
        return Dataset(place_of(str(folder)), Index("", tuple(shard for shard, _ in self.written), {}, {}))


def _path(folder: Path, number: int) -> Path:
    return folder / _FOLDER / f"{number:05d}.json"
