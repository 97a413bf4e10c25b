"""The pieces' shards become the dataset's: as they are, or without the entries that an earlier piece has, too.

A shard that loses nothing is linked, another one written anew, first beside its place. What became of each is written
down, so that a join that was killed goes on with the next shard.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from training.build.bar import Bar
from training.build.options import TRANSLATED
from training.build.piece import Piece, Written
from training.build.verdicts import Loss, Unjoined, Verdict, judge, read_verdict
from training.data.index import File, Shard
from training.data.writer import Labels, Sample, write_shard
from training.stage_folder import write_json

_NOTES, _DRAFT = "shards", "draft"


@dataclass(frozen=True)
class Thinned:
    """What became of a shard: None when nothing was left. `gone` counts the records that went, by licence."""

    shard: Shard | None
    labels: Labels
    gone: Mapping[str, int]


def settle(folder: Path, place: Path, shards: int, bar: Bar) -> None:
    """Makes the pieces of a dataset in `folder` out of those in `place`, a folder below it. Raises BadData.

    However often it is called, the same files come of it, each whole or not at all.
    """
    folders = [place / f"{number:05d}" for number in range(shards)]
    pieces = [Unjoined(Piece.read(one, number), one) for number, one in enumerate(folders)]
    records = sum(one.piece.records for one in pieces)
    bar.begin("looking for near duplicates", records)
    judge(place, pieces, bar.step)
    bar.begin("joining", records)
    for number, one in enumerate(pieces):
        _thin(folder, place, one, read_verdict(place, number)).write(folder)
        bar.step(one.piece.records)


def _thin(folder: Path, place: Path, one: Unjoined, verdict: Verdict) -> Piece:
    """Writes the shards of a piece, and returns what is to be told of it."""
    written, gone, first = list[Written](), Counter[str](), 0
    for shard, labels in one.piece.written:
        losses = [loss for loss in verdict.losses if first <= loss.record < first + shard.samples]
        made = _Thinning(folder, place, one, losses).of(shard, labels, first)
        first += shard.samples
        gone.update(made.gone)
        if made.shard is not None:
            written.append((made.shard, made.labels))
    return one.piece.without(gone, verdict.tally).holding(written)


def without(fields: Mapping[str, Any], loss: Loss) -> dict[str, Any] | None:
    """The record as it had been written, had those entries been refused before. None when nothing is left of it."""
    left = dict(fields)
    for name, places in loss.places.items():
        entries = fields[name] if isinstance(fields[name], list) else [fields[name]]
        kept = [entry for place, entry in enumerate(entries) if place not in places]
        if kept:
            left[name] = kept
        else:
            del left[name]
    if not loss.generates and not any(name in left for name in TRANSLATED):
        return None
    about = fields["provenance"]
    made = {name: note for name, note in about["made"].items() if name not in loss.emptied}
    return {**left, "provenance": {**about, "made": made}}


@dataclass(frozen=True)
class _Thinning:
    folder: Path
    place: Path
    one: Unjoined
    losses: Sequence[Loss]

    def of(self, shard: Shard, labels: Labels, first: int) -> Thinned:
        """`first` is the shard's first record, among the piece's."""
        note = self.place / _NOTES / f"{shard.tar.name}.json"
        losses = hashlib.sha256(json.dumps([asdict(loss) for loss in self.losses]).encode()).hexdigest()
        of = {"of": shard.tar.sha256, "losses": losses}
        thinned = self._known(note, of)
        if thinned is None:
            thinned = self._rewritten(shard, first) if self.losses else self._linked(shard, labels)
            write_json(note, {**of, **asdict(thinned)})
        return thinned

    def _known(self, note: Path, of: Mapping[str, str]) -> Thinned | None:
        """What became of it before a kill, if its files are there."""
        try:
            said = json.loads(note.read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        if any(said[name] != value for name, value in of.items()):
            return None
        raw = said["shard"]
        if raw is None:
            return Thinned(None, {}, said["gone"])
        shard = Shard(File(**raw["tar"]), File(**raw["members"]), raw["samples"], raw["images"])
        if not all(_is_there(self.folder / file.name, file.bytes) for file in (shard.tar, shard.members)):
            return None
        return Thinned(shard, said["labels"], said["gone"])

    def _linked(self, shard: Shard, labels: Labels) -> Thinned:
        for file in (shard.tar, shard.members):
            _link(self.one.folder / file.name, self._draft() / file.name, self.folder / file.name)
        return Thinned(shard, labels, {})

    def _rewritten(self, shard: Shard, first: int) -> Thinned:
        gone = Counter[str]()
        samples = self._samples(range(first, first + shard.samples), gone)
        some = next(samples, None)
        if some is None:
            return Thinned(None, {}, dict(gone))
        stem = self._draft() / shard.tar.name.removesuffix(".tar")
        new, labels = write_shard(stem, chain([some], samples))
        for file in (new.tar, new.members):
            (self._draft() / file.name).replace(self.folder / file.name)
        return Thinned(new, labels, dict(gone))

    def _samples(self, records: range, gone: Counter[str]) -> Iterator[Sample]:
        lost = {loss.record: loss for loss in self.losses}
        for number in records:
            record = self.one.dataset.record(number)
            fields = without(record.fields, lost[number]) if number in lost else record.fields
            if fields is None:
                gone[str(record.fields["provenance"]["licence"])] += 1
                continue
            yield fields, [self.one.dataset.image(number, image) for image in range(record.images)]

    def _draft(self) -> Path:
        (self.place / _DRAFT).mkdir(parents=True, exist_ok=True)
        return self.place / _DRAFT


def _link(source: Path, draft: Path, target: Path) -> None:
    """A second name for the file, or a copy where the file system has no second names."""
    draft.unlink(missing_ok=True)
    try:
        os.link(source, draft)
    except OSError:
        shutil.copyfile(source, draft)
    draft.replace(target)
    # Renaming a name of a file to another name of it does nothing.
    draft.unlink(missing_ok=True)


def _is_there(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False
