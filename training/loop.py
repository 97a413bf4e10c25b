"""The training loop: one step after another, and what must hold between two steps on every process.

A step is agreed on first: one sum over all processes tells how much there is to learn in it (so that a loss is the
same mean on any number of processes), whether anyone was asked to stop, and how many samples were bad. Then the
micro-batches run, the gradients are applied, and one more sum gives what is logged. Nothing else is shared, and
no state lives outside what a checkpoint holds: a run that was killed anywhere goes on as if it had not been.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from training.checkpoint import Checkpoints
from training.data.batch import Batch, to_device
from training.data.loader import StepData
from training.data.mixture import Cursor, Mixture
from training.data.report import BadSamples
from training.distributed import World, accumulating
from training.errors import BadConfig, Stopped, TrainingError
from training.flops import FlopMeter
from training.objectives import Objectives
from training.optimizer import Optimization
from training.peers import Peers
from training.progress import Progress, StepReport
from training.recipe import Recipe
from training.stopping import StopSignal
from training.unsharded import unsharded
from training.watchdog import Watchdog, check_finite


class Evaluator(Protocol):
    """Measures the model after `step` as it would be shipped."""

    def __call__(self, step: int) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Machinery:
    """What a loop drives; all of it is made by `training/run.py`."""

    recipe: Recipe
    world: World
    objectives: Objectives
    module: nn.Module
    optimization: Optimization
    mixture: Mixture
    checkpoints: Checkpoints
    progress: Progress
    watchdog: Watchdog
    stop: StopSignal
    bad: BadSamples
    peers: Peers
    evaluate: Evaluator
    attempt: int
    flops: FlopMeter


@dataclass
class _Agreed:
    """What one step is about, summed over all processes."""

    counts: dict[str, float]
    stop: bool
    save: bool


@dataclass
class _Done:
    """What this process did in one step."""

    sums: Counter[str]
    by_source: Tensor
    norm: float
    started: float
    waited: float


class Loop:
    """Runs a stage from wherever its newest checkpoint stands. `run` returns the metrics of the last evaluation."""

    def __init__(self, machinery: Machinery) -> None:
        self.m = machinery
        self.step = 0
        self.cursor: Cursor = machinery.mixture.start()
        self._saved_at, self._stalled = time.monotonic(), 0.0

    def resume(self) -> bool:
        """Loads the newest checkpoint, if there is one. Raises BadConfig when it belongs to another recipe or data."""
        published = self.m.checkpoints.latest()
        if published is None:
            return False
        state = self.m.checkpoints.state(published)
        if state["stage"] != self.m.recipe.stage:
            raise BadConfig(
                f"{published.folder}: a checkpoint of stage {state['stage']!r}, not {self.m.recipe.stage!r}"
            )
        self.m.objectives.memory.lay_out(state["memory"], self.m.world.device)
        self.m.checkpoints.load(published, self._tensors())
        self.step = state["step"]
        self.cursor = self.m.mixture.cursor(state["cursor"])
        self.m.bad.restore(state["bad"])
        self.m.flops.a_unit = state["flops_a_unit"]
        return True

    def run(self, data: Iterator[StepData]) -> Mapping[str, float]:
        """All steps that are left. Raises Stopped after the checkpoint of a SIGTERM, NonFinite, BadData."""
        steps = self.m.recipe.optimizer.steps
        # A run that was killed between its last step and its end still owes the evaluation.
        metrics = self._check() if self.step >= steps else {}
        while self.step < steps:
            started = time.perf_counter()
            self.m.watchdog.beat(f"waiting for the data of step {self.step + 1}")
            work = next(data)
            waited = time.perf_counter() - started
            self.m.watchdog.beat(f"step {self.step + 1}")
            agreed = self._agree(work)
            report = self._train(work, agreed, started, waited)
            self.step, self.cursor = self.step + 1, work.cursor
            self.m.progress.step(report)
            self.m.checkpoints.poll()
            if agreed.stop:
                self._stop()
            if self._is_due(agreed) or self.step == steps:
                self._save()
                metrics = self._check()
        self.m.checkpoints.finish()
        return metrics

    def _agree(self, work: StepData) -> _Agreed:
        names = sorted(self.m.recipe.losses)
        local = Counter[str]()
        for batch in work.batches:
            local.update(self.m.objectives.counts(batch))
        wish = time.monotonic() - self._saved_at >= (self.m.recipe.saving.every_seconds or float("inf"))
        flags = [float(self.m.stop.requested), float(wish and self.m.world.rank == 0), float(len(work.bad))]
        values = self.m.world.sum([*(float(local[name]) for name in names), *flags])
        # Names travel only in the rare step that has any.
        self.m.bad.add(work.samples, self.m.world.gather(list(work.bad)) if values[-1] else [])
        self.m.bad.check()
        return _Agreed(dict(zip(names, values, strict=False)), values[-3] > 0, values[-2] > 0)

    def _train(self, work: StepData, agreed: _Agreed, started: float, waited: float) -> StepReport:
        torch.manual_seed(self.m.recipe.seed * 1_000_003 + self.step * 1009 + self.m.world.rank)
        sums: Counter[str] = Counter()
        by_source = torch.zeros(2, len(self.m.recipe.data), dtype=torch.float64)
        for number, batch in enumerate(work.batches):
            last = number == len(work.batches) - 1
            counting = self.m.flops.counting(_units(batch)) if self.step == 0 else nullcontext()
            with counting, accumulating(self.m.module, last=last):
                losses = self._forward(batch)
                total = self._weighted(losses.sums, agreed.counts)
                torch.autograd.backward(total * self.m.world.size)
            sums.update({name: float(value.detach()) for name, value in losses.sums.items()})
            by_source += losses.by_source.detach().to("cpu", torch.float64)
        norm = self.m.optimization.step(self.step)
        return self._report(work, agreed, _Done(sums, by_source, norm, started, waited))

    def _forward(self, batch: Batch) -> Any:
        device = self.m.world.device
        with _autocast(self.m.recipe, device):
            return self.m.module(to_device(batch, device), self.m.peers)

    def _weighted(self, sums: Mapping[str, Tensor], counts: Mapping[str, float]) -> Tensor:
        """Weighted sum of mean losses: gradients of different processes add up to those of one."""
        weights = self.m.recipe.losses
        parts = [weights[name] * value / max(1.0, counts[name]) for name, value in sums.items()]
        return torch.stack(parts).sum()

    def _report(self, work: StepData, agreed: _Agreed, done: _Done) -> StepReport:
        names, sources = sorted(self.m.recipe.losses), len(self.m.recipe.data)
        units = float(sum(map(_units, work.batches)))
        amounts = [units, float(work.useful), float(work.positions), float(work.supervised)]
        values = self.m.world.sum([*(done.sums[name] for name in names), *done.by_source.flatten().tolist(), *amounts])
        losses = {name: value / max(1.0, agreed.counts[name]) for name, value in zip(names, values, strict=False)}
        stalled, self._stalled = self._stalled, 0.0
        losses["total"] = sum(self.m.recipe.losses[name] * losses[name] for name in names)
        check_finite(self.step + 1, losses, done.norm)
        lost, seen = values[len(names) : len(names) + sources], values[len(names) + sources : -len(amounts)]
        return StepReport(
            stage=self.m.recipe.stage,
            step=self.step + 1,
            total_steps=self.m.recipe.optimizer.steps,
            attempt=self.m.attempt,
            losses=losses,
            by_source=_by_name([source.name for source in self.m.recipe.data], lost, seen),
            rates={"rate": self.m.optimization.rate(self.step)},
            grad_norm=done.norm,
            samples=work.samples,
            useful_tokens=int(values[-3]),
            positions=int(values[-2]),
            supervised_tokens=int(values[-1]),
            flops=self.m.flops.of(values[-4]),
            seconds=time.perf_counter() - done.started,
            data_seconds=done.waited,
            stall_seconds=stalled,
        )

    def _is_due(self, agreed: _Agreed) -> bool:
        every = self.m.recipe.saving.every_steps
        return agreed.save or bool(every and self.step % every == 0)

    def _stop(self) -> None:
        self._save()
        if not self.m.checkpoints.finish():
            raise TrainingError(f"asked to stop after step {self.step}, but its checkpoint could not be written")
        raise Stopped(f"stopped after step {self.step}; its checkpoint is published")

    def _save(self) -> None:
        self.m.watchdog.beat(f"saving the checkpoint of step {self.step}")
        state = {
            "stage": self.m.recipe.stage,
            "step": self.step,
            "cursor": self.m.mixture.to_json(self.cursor),
            "bad": self.m.bad.state(),
            "flops_a_unit": self.m.flops.a_unit,
            "memory": self.m.objectives.memory.layout(),
        }
        self.m.checkpoints.save(self.step, self._tensors(), state)
        self._stalled = self.m.checkpoints.last_stall_seconds
        self._saved_at = time.monotonic()

    def _tensors(self) -> dict[str, Any]:
        remembered = self.m.objectives.memory.tensors()
        return self.m.optimization.tensors() | ({"memory": remembered} if remembered else {})

    def _check(self) -> Mapping[str, float]:
        self.m.watchdog.beat(f"evaluating step {self.step}")
        began = time.perf_counter()
        self.m.optimization.swap_means()
        with unsharded(self.m.module):
            metrics = self.m.evaluate(self.step)
        self.m.optimization.swap_means()
        self.m.progress.checkpoint(self.step, metrics, time.perf_counter() - began)
        return metrics


def _units(batch: Batch) -> int:
    """What a step's arithmetic goes with: positions of text, or pictures where there is none."""
    if batch.rows is not None:
        return batch.rows.ids_RT.numel()
    return len(batch.valid_B)


def _autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    if recipe.compute.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _by_name(names: Sequence[str], lost: Sequence[float], seen: Sequence[float]) -> dict[str, float]:
    """Mean loss by source name, of the sources that had tokens in this step (sources may share a name)."""
    total: dict[str, tuple[float, float]] = {}
    for name, value, count in zip(names, lost, seen, strict=True):
        before = total.get(name, (0.0, 0.0))
        total[name] = before[0] + value, before[1] + count
    return {name: value / count for name, (value, count) in total.items() if count}
