"""A stage's gate: what its evaluation must reach, or the job ends here and nothing after it is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from training.complaints import did_you_mean
from training.errors import BadConfig, GateFailed


class Gate(Protocol):
    """`metric` is one of the evaluation's, as `evaluation.json` names it."""

    @property
    def metric(self) -> str: ...
    @property
    def at_least(self) -> float: ...


def enforce(gate: Gate | None, metrics: Mapping[str, float]) -> None:
    """Raises GateFailed below the gate, BadConfig for a metric that was not measured. Without a gate all is well."""
    if gate is None:
        return
    if gate.metric not in metrics:
        meant = did_you_mean(gate.metric, metrics)
        raise BadConfig(f"gate: {gate.metric!r} was not measured, only {', '.join(sorted(metrics))}{meant}")
    if not metrics[gate.metric] >= gate.at_least:
        raise GateFailed(f"gate: {gate.metric} is {metrics[gate.metric]:.4g}, it must be at least {gate.at_least:.4g}")
