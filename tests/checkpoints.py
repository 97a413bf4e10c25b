"""What tests of checkpoints share: a run's state that is a function of its step, and comparison bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.checkpoint import Checkpoints


def alone(folder: Path, attempt: int = 1, keep: int = 2) -> Checkpoints:
    """Of the only process, claimed."""
    checkpoints = Checkpoints(folder, attempt=attempt, keep=keep, rank=0, world=1, group=None)
    checkpoints.claim()
    return checkpoints


def state_of(step: int, size: int = 100) -> dict[str, Any]:
    """What a run holds after `step`: a function of nothing else."""
    weights = torch.arange(size, dtype=torch.float32) * 0.37 + step
    return {
        "weights": {"a.weight": weights.reshape(-1, 4), "b": weights.to(torch.bfloat16)},
        "moments": {"a.weight": {"step": torch.tensor(float(step)), "exp_avg": weights.double() / 3}},
        "means": [torch.full((3,), step), torch.tensor([True, False])],
        "plain": [step, "中文", None],
    }


def empty(size: int = 100) -> dict[str, Any]:
    """The same names and shapes with other values."""
    other = state_of(-1, size)
    other["plain"] = []
    return other


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for one in value.values() for leaf in leaves(one)]
    if isinstance(value, list):
        return [leaf for one in value for leaf in leaves(one)]
    return [value]


def same(left: Any, right: Any) -> bool:
    """Equal in every bit: NaN too, and -0.0 is not 0.0."""
    pairs = list(zip(leaves(left), leaves(right), strict=True))
    return all(_bits(one) == _bits(other) for one, other in pairs)


def _bits(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
    return value


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, state_of(step), {"step": step})
    assert checkpoints.finish()


def loaded(checkpoints: Checkpoints) -> tuple[int, dict[str, Any]]:
    """Step and tensors of the newest checkpoint."""
    published = checkpoints.latest()
    assert published is not None
    tensors = empty()
    state = checkpoints.load(published, tensors)
    assert state == {"step": published.step}
    return published.step, tensors


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "fence")
