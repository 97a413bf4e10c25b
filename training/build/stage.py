"""The builder of a data stage (`builder: training.build.stage`): one piece at a time, then all of them as one dataset.

    part-00003-00000.tar, .index.npz    the shards of piece 3
    pieces/00003.json                   what they hold, what was read, what the gates found
    index.json                          of all pieces: with it the folder is a dataset
    manifest.json, report.html, report.json

A piece is a pure function of the input, the options and the answers in the ledger. It is made by whoever comes first:
a task of the operator's data queue, `ziya train run`, or `ziya data build`.
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
from training.build.manifest import write_manifest, write_piece
from training.build.options import BuildOptions, read_options
from training.build.rows import Rows, open_rows
from training.build.work import Plan
from training.data.writer import write_shards
from training.llm.asker import Asker
from training.llm.ledger import Ledger
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
    with Ledger(path) as ledger, StopSignal() as stop, Bar(name) as bar, asyncio.Runner() as runner:
        asker = Asker(how.endpoint, ledger, budget)
        try:
            _piece(folder, shard, how, rows, asker=asker, runner=runner, bar=bar, stop=stop)
        finally:
            runner.run(asker.__aexit__())


def join(folder: Path, shards: int, **options: Any) -> None:
    """Makes one dataset of the pieces in `folder`. Raises BadData when they were made of different inputs."""
    write_manifest(folder, shards, read_options(_placed(options, folder.parent), WHERE))


def _piece(
    folder: Path,
    shard: int,
    how: BuildOptions,
    rows: Rows,
    *,
    asker: Asker,
    runner: asyncio.Runner,
    bar: Bar,
    stop: StopSignal,
) -> None:
    plan = Plan(how)
    with Checks(how.gates, asker) as checks:
        runner.run(Asking(plan, rows, asker, checks, bar, stop).run())
        bar.begin("writing", len(rows))
        composing = Composing(plan, rows, asker, checks, runner, stop, bar.step)
        made, labels = write_shards(
            folder, composing.samples(), stem=f"part-{shard:05d}", shard_samples=how.shard_samples
        )
        write_piece(folder, shard, composing, made, labels)


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
