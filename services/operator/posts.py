"""What a trainer posts of its progress, as the status shows it: Kubeflow's `trainerStatus`, so that transformers' own
KubeflowCallback can post too. Metrics are names with values as text; those that the status has are taken, others left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_NAMES = {
    "step": "step",
    "total_steps": "total",
    "loss": "loss",
    "learning_rate": "learningRate",
    "tokens_per_second": "tokensPerSecond",
    "samples_per_second": "samplesPerSecond",
    "mfu": "mfu",
}


def progress_of(body: Any) -> dict[str, Any]:
    """Fields of the status's `progress`. Raises ValueError with a sentence."""
    told = body.get("trainerStatus") if isinstance(body, Mapping) else None
    if not isinstance(told, Mapping):
        raise ValueError("the body has no trainerStatus")
    metrics = told.get("metrics") or []
    if not isinstance(metrics, list) or len(metrics) > 100:
        raise ValueError("trainerStatus.metrics is not a list of at most 100")
    found: dict[str, Any] = {}
    for metric in metrics:
        if isinstance(metric, Mapping) and metric.get("name") in _NAMES:
            found[_NAMES[str(metric["name"])]] = _number(metric.get("value"), str(metric["name"]))
    if "step" not in found:
        found |= {"step": _number(told.get("progressPercentage", 0), "progressPercentage"), "total": 100}
    found["step"], found["total"] = int(found["step"]), int(found.get("total", 0))
    if (left := told.get("estimatedRemainingSeconds")) is not None:
        found["etaSeconds"] = _number(left, "estimatedRemainingSeconds")
    return found


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not a number") from error
    if not math.isfinite(number):
        raise ValueError(f"{name} is not finite")
    return number
