"""A stage of type `eval`: the checks on the model of an earlier stage, and nothing learnt.

Of several processes each examines its share. It leaves `evaluation.json`, and `done.json` where the gate is passed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from training.assemble import Places, examiner
from training.distributed import join
from training.errors import BadConfig
from training.evaluate import write_report
from training.fence import Fence
from training.gate import Gate, enforce
from training.recipe import Recipe
from training.stage_folder import StageFolder


def examine(
    recipe: Recipe, places: Places, folder: StageFolder, *, attempt: int, gate: Gate | None = None
) -> Mapping[str, float]:
    """Metrics of the checkpoint `places.base`.

    Raises BadConfig without checks, GateFailed, BadData, CheckpointError.
    """
    if not recipe.checks:
        raise BadConfig(f"stage {recipe.stage!r} evaluates, but has no checks: name some under train.checks")
    began = time.monotonic()
    with join(2 * recipe.hang_seconds) as world, torch.inference_mode():
        if world.rank == 0:
            Fence(_made(folder.checkpoints), attempt).claim()
        metrics = examiner(recipe, places, world)()
        if world.rank == 0:
            write_report(folder.evaluation, recipe.stage, 0, metrics)
        enforce(gate, metrics)
        if world.rank == 0:
            seconds = round(time.monotonic() - began, 1)
            folder.finish({"stage": recipe.stage, "metrics": dict(metrics), "attempt": attempt, "seconds": seconds})
            folder.leave(attempt, 0, "done")
        world.barrier()
    return metrics


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
