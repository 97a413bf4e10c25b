"""`python -m training.run JOB --stage NAME --output DIR --attempt N`: one process of one attempt at one stage.

Alone or under torchrun (training/launch.py). The exit code says what a supervisor should do (training/errors.py), and
the first process leaves the same with its reason in the stage's folder. From Python, `train` runs a recipe without
a job file.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from training import lora
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
from training.export import export
from training.flops import FlopMeter, peak_flops
from training.gate import Gate, enforce
from training.job import TRAINS, Stage, TrainingJob, load
from training.json_log import JsonLog
from training.loop import Loop, Machinery
from training.model import there
from training.optimizer import Optimization
from training.override import recipe_of
from training.peers import Peers
from training.progress import Progress, Sink
from training.recipe import Recipe
from training.stage_folder import StageFolder
from training.stopping import StopSignal
from training.tensorboard import TensorBoard
from training.watchdog import Watchdog, termination_message
from ziya.checkpoint import CheckpointError

TERMINATION_LOG = Path("/dev/termination-log")
MERGE_TOLERANCE = 1e-3


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


def train(run: Run) -> Mapping[str, float]:
    """Trains to the end, exports, and returns the metrics of the last evaluation; goes on from a checkpoint if any.

    Raises TrainingError (Stopped after SIGTERM, GateFailed) or CheckpointError.
    """
    began, recipe = time.monotonic(), run.recipe
    words = partial(_last_words, run)
    with ExitStack() as held:
        world = held.enter_context(join(2 * recipe.hang_seconds))
        stop = held.enter_context(StopSignal())
        dtype = torch.bfloat16 if recipe.compute.precision == "bfloat16" else torch.float32
        peak = peak_flops(world.device, dtype)
        progress = Progress(_sinks(run) if world.rank == 0 else (), peak * world.size if peak else None)
        held.callback(progress.close)
        watchdog = held.enter_context(Watchdog(recipe.hang_seconds, run.folder.path, rank=world.rank, last_words=words))
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
        if loop.resume():
            progress.note(f"goes on after step {loop.step} of {recipe.optimizer.steps}")
        ahead = plans(assembly.mixture, loop.cursor, recipe.optimizer, world, loop.step)
        metrics = loop.run(load_data(assembly.collator, ahead, recipe.compute.workers))
        watchdog.beat("exporting the checkpoint")
        loop.m.optimization.swap_means()
        _export(run, assembly, world)
        if world.rank == 0:
            loop.m.bad.write(run.folder.bad_samples)
        enforce(run.gate, metrics)
        if world.rank == 0:
            _finish(run, metrics, time.monotonic() - began)
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


def _export(run: Run, assembly: Assembly, world: World) -> None:
    """Writes model/ and adapter/. All processes take part where weights are sharded; the first one writes."""
    model, recipe, writes = assembly.objectives.model, run.recipe, world.rank == 0
    learned = {part.split(".")[0] for part, share in recipe.learn.items() if share > 0}
    tensors = lora.merged_state(there(model.llama, "llama")) if "llama" in learned else None
    if recipe.lora is not None and world.size == 1:
        _check_merge(assembly)
    if recipe.lora is not None:
        lora.save_adapter(there(model.llama, "llama"), run.folder.adapter, write=writes)
    export(
        model,
        run.places.base,
        run.folder.model,
        learned=learned,
        llama_tensors=tensors,
        dtype=torch.bfloat16,
        name=run.name,
        write=writes,
    )


def _check_merge(assembly: Assembly) -> None:
    """The merged model must say what the one with adapters says. Raises TrainingError when it does not."""
    llama = there(assembly.objectives.model.llama, "llama")
    ids_BT = torch.arange(32, device=llama.device).view(1, -1) % llama.config.vocab_size
    if (error := lora.merge_error(llama, ids_BT)) > MERGE_TOLERANCE:
        raise TrainingError(f"merging the LoRA adapters changes a logit by {error:.2g}, more than {MERGE_TOLERANCE}")


def _finish(run: Run, metrics: Mapping[str, float], seconds: float) -> None:
    summary = {
        "stage": run.recipe.stage,
        "step": run.recipe.optimizer.steps,
        "metrics": dict(metrics),
        "attempt": run.attempt,
        "seconds": round(seconds, 1),
    }
    run.folder.finish(summary)
    run.folder.leave(run.attempt, 0, "done")


def _sinks(run: Run) -> list[Sink]:
    stage, steps = run.recipe.stage, run.recipe.optimizer.steps
    sinks: list[Sink] = [
        Bar(stage, 0, steps),
        JsonLog(run.folder.path / "metrics.jsonl", run.attempt),
        TensorBoard(run.folder.path / "tensorboard"),
    ]
    endpoint = EndpointConfig.from_environment()
    return [*sinks, Endpoint(endpoint)] if endpoint is not None else sinks


def _last_words(run: Run, reason: str) -> None:
    _leave(run.folder, run.attempt, TrainingError.exit_code, reason)


def _leave(folder: StageFolder, attempt: int, code: int, reason: str) -> None:
    """The first process has the last word; another one speaks only where there is none yet."""
    if int(os.environ.get("RANK", "0")) == 0 or folder.verdict(attempt) is None:
        folder.leave(attempt, code, reason)
    termination_message(TERMINATION_LOG, reason)


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
    """Runs it; returns the exit code, whose reason is on stderr and in the stage's folder."""
    folder = StageFolder(output / stage)
    try:
        job = load(job_file)
        run = run_of(job, job.stage(stage), output, attempt)
        if job.stage(stage).type == "eval":
            examine(run.recipe, run.places, run.folder, attempt=attempt, gate=run.gate)
        else:
            train(run)
        return 0
    except CheckpointError as error:
        code, reason = BadConfig.exit_code, str(error)
    except TrainingError as error:
        code, reason = error.exit_code, str(error)
    print(f"{stage}: {reason}", file=sys.stderr, flush=True)
    _leave(folder, attempt, code, reason)
    return code


def main() -> None:
    faulthandler.enable()
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    parser = argparse.ArgumentParser(prog="python -m training.run", description=__doc__)
    parser.add_argument("job", type=Path, help="the TrainingJob's YAML file")
    parser.add_argument("--stage", required=True)
    parser.add_argument("--output", type=Path, required=True, help="the job's output folder")
    parser.add_argument("--attempt", type=int, required=True, help="larger than any attempt before")
    how = parser.parse_args()
    sys.exit(attempt_stage(how.job, how.stage, how.output, how.attempt))


if __name__ == "__main__":
    main()
