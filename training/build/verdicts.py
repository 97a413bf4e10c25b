"""Which entries of all pieces are near duplicates: one gate goes through the candidates of all, in the rows' order.

So the verdicts are those of one piece. They are written down after each piece, with how many rows the gate had kept by
then: a join that was killed goes on behind the last piece that is written down.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any

from training.build.candidates import Candidate, read_candidates
from training.build.options import TRANSLATED
from training.build.piece import Piece
from training.data.shards import Dataset
from training.gates.duplicates import NearDuplicates
from training.gates.gate import Reject
from training.gates.row import Row
from training.gates.shelf import Text
from training.gates.tally import Tally
from training.stage_folder import write_json

_VERDICTS, _KEPT = "verdicts", "kept"


@dataclass(frozen=True)
class Loss:
    """What a record loses: places of entries by field; of `emptied` fields all that was made.

    `generates` says whether anything that was generated is left.
    """

    record: int
    places: Mapping[str, Sequence[int]]
    emptied: Sequence[str]
    generates: bool


@dataclass(frozen=True)
class Verdict:
    """On one piece: the records that lose something, in order, and the tally with the last word on every entry.

    `of` is a digest of this piece and all before it, `kept` how many rows the gate kept of them.
    """

    of: str
    kept: int
    tally: Mapping[str, Any]
    losses: Sequence[Loss]


@dataclass(frozen=True)
class Unjoined:
    """A piece with the folder in which its shards and candidates lie."""

    piece: Piece
    folder: Path

    @cached_property
    def dataset(self) -> Dataset:
        return self.piece.dataset(self.folder)

    def row(self, candidate: Candidate) -> Row:
        """With its picture, which is read when it is looked at."""
        row = candidate.read()
        return replace(row, image=lambda: self.dataset.image(candidate.record, 0)) if candidate.has_image else row


def judge(place: Path, pieces: Sequence[Unjoined], step: Callable[[int], None] = lambda _: None) -> None:
    """On all pieces: `read_verdict` gives the verdicts. `place` is a folder to work in, the same one after a kill.

    `step` hears of records that are through.
    """
    chain = _chain(pieces)
    with NearDuplicates(place / _KEPT) as gate:
        first, kept = _known(place, chain)
        if gate.rows < kept:
            first, kept = 0, 0
        gate.truncate(kept)
        step(sum(one.piece.records for one in pieces[:first]))
        for number in range(first, len(pieces)):
            losses, tally = _judged(pieces[number], gate, step)
            gate.flush()
            write_json(_path(place, number), asdict(Verdict(chain[number], gate.rows, tally.state(), losses)))


def read_verdict(place: Path, number: int) -> Verdict:
    """On one piece. Raises OSError, ValueError where there is none."""
    said = json.loads(_path(place, number).read_text("utf-8"))
    return Verdict(**{**said, "losses": [Loss(**loss) for loss in said["losses"]]})


def _judged(one: Unjoined, gate: NearDuplicates, step: Callable[[int], None]) -> tuple[list[Loss], Tally]:
    losses, tally = [], Tally.restore(one.piece.tally)
    for record, some in groupby(read_candidates(one.folder), key=lambda found: found[0].record):
        entries = [(candidate, _reject(candidate, texts, gate)) for candidate, texts in some]
        for candidate, reject in entries:
            tally.settle(candidate.task, candidate.digest, partial(one.row, candidate), reject)
        if any(reject for _, reject in entries):
            losses.append(_loss(record, entries))
        step(1)
    return losses, tally


def _reject(candidate: Candidate, texts: Sequence[Text], gate: NearDuplicates) -> Reject | None:
    match = gate.match(texts)
    if match is None:
        gate.remember(texts)
        return None
    return match.reject(candidate.read())


def _loss(record: int, entries: Sequence[tuple[Candidate, Reject | None]]) -> Loss:
    places: defaultdict[str, list[int]] = defaultdict(list)
    for candidate, reject in entries:
        if reject is not None:
            places[candidate.field].append(candidate.place)
    left = {candidate.field for candidate, reject in entries if reject is None}
    return Loss(record, dict(places), sorted(set(places) - left), bool(left - set(TRANSLATED)))


def _chain(pieces: Sequence[Unjoined]) -> list[str]:
    """A digest of each piece and all before it."""
    content, digests = hashlib.sha256(), []
    for one in pieces:
        content.update(json.dumps(asdict(one.piece), sort_keys=True).encode())
        digests.append(content.hexdigest())
    return digests


def _known(place: Path, chain: Sequence[str]) -> tuple[int, int]:
    """On how many of these pieces there are verdicts, from the first one on, and how many rows were kept of them."""
    kept = 0
    for number, digest in enumerate(chain):
        try:
            verdict = read_verdict(place, number)
        except FileNotFoundError:
            return number, kept
        if verdict.of != digest:
            return number, kept
        kept = verdict.kept
    return len(chain), kept


def _path(place: Path, number: int) -> Path:
    return place / _VERDICTS / f"{number:05d}.json"
