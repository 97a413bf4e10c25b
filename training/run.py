"""`python -m training.run JOB --stage NAME --output DIR --attempt N`: one process of one attempt at one stage.

Alone or under torchrun (training/launch.py). The exit code says what a supervisor should do (training/errors.py), and
the first process leaves the same with its reason in the stage's folder. From Python, `train` runs a recipe without
a job file.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from training.assemble import Assembly, Places, Told, assemble
from training.bar import Bar
from training.checkpoint import Checkpoints
from training.data.loader import load as load_data
from training.data.loader import plans
from training.data.report import BadSamples
from training.distributed import World, join, spread
from training.endpoint import Endpoint, EndpointConfig
from training.errors import BadConfig, TrainingError
from training.eval_stage import examine
from training.evaluate import write_report
from training.flops import FlopMeter, peak_flops
from training.gate import Gate, enforce
from training.job import TRAINS, Stage, TrainingJob, load
from training.json_log import JsonLog
from training.last_words import LastWords
from training.leaving import leave_model, leave_summary
from training.loop import Loop, Machinery
from training.optimizer import Optimization
from training.override import recipe_of
from training.peers import Peers
from training.progress import Progress, Sink
from training.recipe import Recipe
from training.stage_folder import StageFolder
from training.stopping import StopSignal, stopping_at_once
from training.tensorboard import TensorBoard
from training.watchdog import Watchdog
from ziya.checkpoint import CheckpointError


@dataclass(frozen=True)
class Run:
    """A recipe, where it reads and writes, and which attempt it is; `name` is put into the exported checkpoint.

    With a `gate` the run fails after its export where the last evaluation does not reach it.
    """

    recipe: Recipe
    places: Places
    folder: StageFolder
    attempt: int
    name: str | None = None
    gate: Gate | None = None


class Life(NamedTuple):
    """What keeps a run, and what may end it."""

    checkpoints: Checkpoints
    watchdog: Watchdog
    stop: StopSignal


def train(run: Run, words: LastWords | None = None) -> Mapping[str, float]:
    """Trains to the end, exports, and returns the metrics of the last evaluation; goes on from a checkpoint if any.

    Raises TrainingError (Stopped after SIGTERM, GateFailed) or CheckpointError.
    """
    began, recipe, words = time.monotonic(), run.recipe, words or LastWords.from_environment()
    with ExitStack() as held:
        world = held.enter_context(join(2 * recipe.hang_seconds))
        stop = held.enter_context(StopSignal())
        dtype = torch.bfloat16 if recipe.compute.precision == "bfloat16" else torch.float32
        peak = peak_flops(world.device, dtype)
        progress = Progress(_sinks(run) if world.rank == 0 else (), peak * world.size if peak else None)
        held.callback(progress.close)
        hangs = partial(_leave, run.folder, run.attempt, words, code=TrainingError.exit_code, error="Hang")
        watchdog = held.enter_context(Watchdog(recipe.hang_seconds, run.folder.path, rank=world.rank, last_words=hangs))
        watchdog.beat("loading the model and the data")
        checkpoints = Checkpoints(
            run.folder.checkpoints,
            attempt=run.attempt,
            keep=recipe.saving.keep,
            rank=world.rank,
            world=world.size,
            group=world.host,
        )
        checkpoints.claim()
        held.callback(checkpoints.close)
        told = Told(world, progress)
        assembly = assemble(recipe, run.places, told)
        assembly.examiner.beat = watchdog.beat
        loop = Loop(_machinery(run, assembly, told, Life(checkpoints, watchdog, stop)))
        words.step = lambda: loop.step or None
        if loop.resume():
            progress.note(f"goes on after step {loop.step} of {recipe.optimizer.steps}")
        ahead = plans(assembly.mixture, loop.cursor, recipe.optimizer, world, loop.step)
        metrics = loop.run(load_data(assembly.collator, ahead, recipe.compute.workers))
        watchdog.beat("exporting the checkpoint")
        loop.m.optimization.swap_means()
        leave_model(run, assembly, world)
        if world.rank == 0:
            loop.m.bad.write(run.folder.bad_samples)
        enforce(run.gate, metrics)
        if world.rank == 0:
            leave_summary(run, metrics, time.monotonic() - began)
        world.barrier()
    return metrics


def _machinery(run: Run, assembly: Assembly, told: Told, life: Life) -> Machinery:
    world = told.world
    objectives, recipe = assembly.objectives, run.recipe
    module = spread(objectives, objectives.blocks(), recipe.compute, world)
    keeps_vision = not any(part.startswith("vision") for part in recipe.learn)
    return Machinery(
        recipe=recipe,
        world=world,
        objectives=objectives,
        module=module,
        optimization=Optimization(objectives, assembly.groups, recipe.optimizer),
        mixture=assembly.mixture,
        checkpoints=life.checkpoints,
        progress=told.progress,
        watchdog=life.watchdog,
        stop=life.stop,
        bad=BadSamples(recipe.bad_share),
        peers=Peers(world.rank, world.size, world.peers),
        evaluate=partial(_evaluate, run, assembly, world, keeps_vision),
        attempt=run.attempt,
        flops=FlopMeter(),
    )


def _evaluate(run: Run, assembly: Assembly, world: World, keep_features: bool, step: int) -> Mapping[str, float]:
    if not run.recipe.checks:
        return {}
    with torch.autocast(world.device.type, torch.bfloat16, enabled=run.recipe.compute.precision == "bfloat16"):
        metrics = assembly.examiner(keep_features=keep_features)
    if world.rank == 0:
        write_report(run.folder.evaluation, run.recipe.stage, step, metrics)
    return metrics


def _sinks(run: Run) -> list[Sink]:
    stage, steps = run.recipe.stage, run.recipe.optimizer.steps
    sinks: list[Sink] = [
        Bar(stage, 0, steps),
        JsonLog(run.folder.path / "metrics.jsonl", run.attempt),
        TensorBoard(run.folder.path / "tensorboard"),
    ]
    endpoint = EndpointConfig.from_environment()
    return [*sinks, Endpoint(endpoint)] if endpoint is not None else sinks


def run_of(job: TrainingJob, stage: Stage, output: Path, attempt: int) -> Run:
    """What a stage of a job asks for."""
    if stage.type not in TRAINS and stage.type != "eval":
        raise BadConfig(f"stage {stage.name!r} is of type {stage.type!r}, which neither trains nor evaluates")
    recipe = replace(recipe_of(stage), stage=stage.name)
    places = Places(_base(job, stage, output), output, output / "cache")
    return Run(recipe, places, StageFolder(output / stage.name), attempt, gate=stage.gate)


def _base(job: TrainingJob, stage: Stage, output: Path) -> Path:
    """The model of the last stage that trains among those it needs, else among those before it, else the job's."""
    names = [one.name for one in job.spec.stages]
    before = [one for one in job.spec.stages[: names.index(stage.name)] if one.type in TRAINS]
    needed = [one for one in before if one.name in stage.needs] or before
    return StageFolder(output / needed[-1].name).model if needed else _resolve(job.spec.model.checkpoint, output)


def _resolve(checkpoint: str, output: Path) -> Path:
    if "://" in checkpoint:
        raise BadConfig(f"model.checkpoint is {checkpoint!r}: a checkpoint has to lie in a folder, copy it first")
    path = Path(checkpoint)
    return path if path.is_absolute() or not (output / path).exists() else output / path


def attempt_stage(job_file: Path, stage: str, output: Path, attempt: int) -> int:
    """Runs it; returns the exit code, whose reason is on stderr, in the stage's folder and in the last words."""
    folder, words = StageFolder(output / stage), LastWords.from_environment()
    if "LOCAL_RANK" not in os.environ:
        words.forget()  # with torchrun its launcher did
    try:
        _attempt(load(job_file), stage, output, attempt, words)
        words.success(folder.summary())
        return 0
    except (TrainingError, CheckpointError) as error:
        code = error.exit_code if isinstance(error, TrainingError) else BadConfig.exit_code
        print(f"{stage}: {error}", file=sys.stderr, flush=True)
        _leave(folder, attempt, words, str(error), code=code, error=type(error).__name__)
        return code
    except Exception as error:  # noqa: BLE001 (the whole program: the log gets the traceback)
        # Often what another process's end does to this one: that process's verdict stands.
        if folder.verdict(attempt) is None:
            folder.leave(attempt, TrainingError.exit_code, f"{type(error).__name__}: {error}")
        words.failure(TrainingError.exit_code, type(error).__name__, str(error))
        traceback.print_exc()
        return TrainingError.exit_code


def _attempt(job: TrainingJob, name: str, output: Path, attempt: int, words: LastWords) -> None:
    stage = job.stage(name)
    run = run_of(job, stage, output, attempt)
    if run.folder.is_done:
        # Whoever started this attempt never heard of the one that finished.
        print(f"{name}: done before", file=sys.stderr, flush=True)
        run.folder.leave(attempt, 0, "done before")
    elif stage.type == "eval":
        with stopping_at_once(f"the evaluation {name!r} was stopped and has to begin again"):
            examine(run.recipe, run.places, run.folder, attempt=attempt, gate=run.gate)
    else:
        train(run, words)


def _leave(folder: StageFolder, attempt: int, words: LastWords, reason: str, *, code: int, error: str) -> None:
    """The first process has the last word in the folder; another one speaks only where there is none yet."""
    words.failure(code, error, reason)
    if int(os.environ.get("RANK", "0")) == 0 or folder.verdict(attempt) is None:
        folder.leave(attempt, code, reason)


def main() -> None:
    faulthandler.enable()
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    parser = argparse.ArgumentParser(prog="python -m training.run", description=__doc__)
    parser.add_argument("job", type=Path, help="the TrainingJob's YAML file")
    parser.add_argument("--stage", required=True)
    parser.add_argument("--output", type=Path, required=True, help="the job's output folder")
    parser.add_argument("--attempt", type=int, required=True, help="larger than any attempt before")
    how = parser.parse_args()
    _end(attempt_stage(how.job, how.stage, how.output, how.attempt))


def _end(code: int) -> None:
    """Without Python's own ending, which would free what can hang then (training/distributed.py)."""
    for child in multiprocessing.active_children():
        child.terminate()
        child.join()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
