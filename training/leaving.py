"""What a run leaves when it has come to its end: the checkpoint that serving loads, the adapter, and a summary."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from training import lora
from training.assemble import Assembly
from training.distributed import World
from training.errors import TrainingError
from training.export import export
from training.model import there
from training.stage_folder import StageFolder
from ziya.checkpoint import read_config

if TYPE_CHECKING:
    from training.run import Run

MERGE_TOLERANCE = 1e-3


def leave_model(run: Run, assembly: Assembly, world: World) -> None:
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
        itc_temperature=assembly.objectives.itc_temperature(),
        write=writes,
    )


def _check_merge(assembly: Assembly) -> None:
    """The merged model must say what the one with adapters says. Raises TrainingError when it does not."""
    llama = there(assembly.objectives.model.llama, "llama")
    ids_BT = torch.arange(32, device=llama.device).view(1, -1) % llama.config.vocab_size
    if (error := lora.merge_error(llama, ids_BT)) > MERGE_TOLERANCE:
        raise TrainingError(f"merging the LoRA adapters changes a logit by {error:.2g}, more than {MERGE_TOLERANCE}")


def leave_summary(run: Run, metrics: Mapping[str, float], seconds: float) -> None:
    """Marks the stage as finished."""
    summary = {
        "stage": run.recipe.stage,
        "step": run.recipe.optimizer.steps,
        "metrics": dict(metrics),
        "artifact": artifact(run.folder),
        "attempt": run.attempt,
        "seconds": round(seconds, 1),
    }
    run.folder.finish(summary)
    run.folder.leave(run.attempt, 0, "done")


def artifact(folder: StageFolder) -> dict[str, Any]:
    """The stage's model: where it lies in the job's output folder, and a digest of its parts' fingerprints."""
    prints = sorted(read_config(folder.model).fingerprints.items())
    digest = hashlib.sha256("".join(f"{part} {value}\n" for part, value in prints).encode()).hexdigest()
    return {"path": f"{folder.path.name}/{folder.model.name}", "digest": f"sha256:{digest}"}
