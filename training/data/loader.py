"""The data of one step after another, made ahead of time by worker processes.

What a step holds is worked out by the main process (a few numbers a sample); the work behind it (reading, wording,
decoding) is done by workers and comes back in order. The cursor of a step travels with its data, so that a
checkpoint never counts what was made ahead but not trained on.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from training.data.batch import Batch
from training.data.collate import Bad, Collator
from training.data.mixture import Cursor, Mixture
from training.data.record import Draw
from training.data.rows import useful
from training.distributed import World
from training.errors import BadConfig
from training.recipe import Optimizer


@dataclass(frozen=True)
class Plan:
    """One step as numbers: this process's slice of each micro-batch."""

    step: int
    micros: tuple[tuple[Draw, ...], ...]
    first: int
    total: int
    cursor: Cursor


@dataclass(frozen=True)
class StepData:
    """One step's batches of this process. `cursor` is where the data stands after it, `samples` counts all processes.

    `useful`, `positions` and `supervised` are this process's tokens: all real ones (of each sample, whatever it shares
    with others), all positions with padding, the learnt ones.
    """

    step: int
    batches: tuple[Batch, ...]
    bad: tuple[Bad, ...]
    cursor: Cursor
    samples: int
    useful: int
    positions: int
    supervised: int


def plans(mixture: Mixture, cursor: Cursor, how: Optimizer, world: World, step: int) -> Iterator[Plan]:
    """Plans from `step` on, without end. Raises BadConfig when the batch cannot be shared out evenly."""
    micro, left = divmod(how.batch, how.accumulate)
    if left or micro % world.size:
        raise BadConfig(
            f"optimizer.batch is {how.batch}: it must be a multiple of accumulate ({how.accumulate}) times the number "
            f"of processes ({world.size})"
        )
    mine = micro // world.size
    first = world.rank * mine
    while True:
        draws, cursor = mixture.plan(cursor, how.batch)
        slices = tuple(draws[start + first : start + first + mine] for start in range(0, how.batch, micro))
        yield Plan(step, slices, first, micro, cursor)
        step += 1


class _Steps(TorchDataset[StepData]):
    """Torch's view of the collator: a plan is the index."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __getitem__(self, plan: Plan) -> StepData:
        batches, bad = self.collator.batches(plan.step, plan.micros, plan.first, plan.total)
        rows = [batch.rows for batch in batches if batch.rows is not None]
        texts = [batch.captions for batch in batches if batch.captions is not None]
        real = sum(map(useful, rows)) + sum(int(t.mask_BT.sum()) for t in texts)
        return StepData(
            step=plan.step,
            batches=tuple(batches),
            bad=tuple(bad),
            cursor=plan.cursor,
            samples=plan.total * len(plan.micros),
            useful=real,
            positions=sum(r.ids_RT.numel() for r in rows) + sum(t.ids_BT.numel() for t in texts),
            supervised=sum(int(r.learnt_RT.sum()) for r in rows),
        )


def load(collator: Collator, steps: Iterator[Plan], workers: int) -> Iterator[StepData]:
    """Data of `steps`, in order. With `workers` 0 it is made when asked for, in this process."""
    data = _Steps(collator)
    if workers == 0:
        return map(data.__getitem__, steps)
    return iter(
        DataLoader(
            data,
            sampler=steps,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2,
            worker_init_fn=_begin_worker,
            pin_memory=torch.cuda.is_available(),
        )
    )


def _begin_worker(worker: int) -> None:
    """A signal to stop is for the main process alone, which still needs the data of the step it is in."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
