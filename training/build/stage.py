"""The builder of a data stage (`builder: training.build.stage`): one piece at a time, then all of them as one dataset.

    part-00003-00000.tar, .index.npz    the shards of piece 3
    pieces/00003.json                   what they hold, what was read, what the gates found
    index.json                          of all pieces: with it the folder is a dataset
    manifest.json, report.html, report.json
    unjoined/00003/                     a piece until all are there, where near duplicates are looked for in all of them

A piece is a pure function of the input, the options and the answers in the ledger. It is made by whoever comes first:
a task of the operator's data queue, `ziya train run`, or `ziya data build`. Joining takes out of the pieces what an
earlier one has, too: the rows that are kept are the same whatever the number of pieces.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.build.asking import Asking
from training.build.bar import Bar
from training.build.checks import Checks
from training.build.composing import Composing
from training.build.manifest import MANIFEST, write_manifest
from training.build.options import BuildOptions, read_options
from training.build.piece import Piece
from training.build.rows import open_rows
from training.build.thinning import settle
from training.build.work import Plan
from training.data.index import INDEX
from training.data.writer import write_shards
from training.llm.asker import Asker
from training.llm.ledger import Ledger
from training.pieces import UNJOINED
from training.stopping import StopSignal

WHERE = "options"


def build_shard(folder: Path, shard: int, shards: int, *, kept: Path, **options: Any) -> None:
    """Piece `shard` of `shards` into `folder`; the ledger lies in `kept` unless the options name one.

    Paths in the options are absolute, or relative to the job's output folder. Raises TrainingError.
    """
    how = read_options(_placed(options, kept.parent.parent), WHERE)
    budget = how.budget
    if how.ledger is None and budget is not None:
        budget /= shards  # a ledger of its own knows nothing of what the other pieces spend
    rows = open_rows(how, shard, shards)
    path = Path(how.ledger) if how.ledger else kept / f"ledger-{shard:05d}.sqlite"
    name = f"piece {shard + 1}/{shards}" if shards > 1 else ""
    place = folder / UNJOINED / f"{shard:05d}" if _is_unjoined(how, shards) else folder
    with Ledger(path) as ledger, StopSignal() as stop, Bar(name) as bar, asyncio.Runner() as runner:
        asker = Asker(how.endpoint, ledger, budget)
        try:
            with Checks(how.gates, asker, None if place == folder else place) as checks:
                plan = Plan(how)
                runner.run(Asking(plan, rows, asker, checks, bar, stop).run())
                bar.begin("writing", len(rows))
                _written(place, shard, Composing(plan, rows, asker, checks, runner, stop, bar.step)).write(place)
        finally:
            runner.run(asker.__aexit__())


def join(folder: Path, shards: int, **options: Any) -> list[str]:
    """Makes one dataset of the pieces in `folder`, and returns the names of its files.

    Raises BadData when they were made of different inputs.
    """
    how = read_options(_placed(options, folder.parent), WHERE)
    if _is_unjoined(how, shards):
        with Bar("") as bar:
            settle(folder, folder / UNJOINED, shards, bar)
    index = write_manifest(folder, [Piece.read(folder, number) for number in range(shards)], how)
    parts = [file.name for shard in index.shards for file in (shard.tar, shard.members)]
    # What is of a build in other pieces, of a shard of which nothing was left, or of a join that was killed.
    stale = set(folder.glob("part-*")) - {folder / name for name in parts}
    for path in (*stale, *folder.glob(".*.json*"), *folder.glob(".report*"), *folder.glob("pieces/.*")):
        path.unlink()
    return [INDEX, MANIFEST, *parts]


def _is_unjoined(how: BuildOptions, shards: int) -> bool:
    """Whether a piece leaves it to `join` to find near duplicates."""
    return how.gates.near_duplicates and shards > 1


def _written(folder: Path, shard: int, composing: Composing) -> Piece:
    """What is to be told of the piece once its shards are in `folder`."""
    size = composing.plan.options.shard_samples
    written = list(write_shards(folder, composing.samples(), stem=f"part-{shard:05d}", shard_samples=size))
    rows = composing.rows
    return Piece(
        shard,
        (rows.first, rows.end),
        rows.layout.kind,
        rows.layout.digest,
        rows.layout.inputs,
        composing.checks.agreement,
        composing.empty,
        dict(sorted(composing.licences.items())),
        composing.bad.state(),
        composing.tally.state(),
    ).holding(written)


def _placed(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """With paths that begin at `folder` where they are not absolute or a URL."""
    placed = dict(options)
    for name in ("input", "images", "demonstrations", "ledger"):
        value = placed.get(name)
        if isinstance(value, str) and value and "://" not in value:
            placed[name] = str(folder / value)
    gates = placed.get("gates")
    if isinstance(gates, Mapping) and isinstance(gates.get("agreement"), str):
        placed["gates"] = {**gates, "agreement": str(folder / gates["agreement"])}
    return placed
