"""How many replicas a HorizontalPodAutoscaler asks for: its documented algorithm, as a pure function with a memory.

    wanted      ceil(sum / target) for each metric, the largest of them; no change within the tolerance of 10 %
    scale down  only to the largest number wanted within the stabilisation window
    policies    of how much may change in a period the most generous counts; what changed already is taken off

Source: kubernetes.io, "Horizontal Pod Autoscaling" (algorithm details, configurable scaling behavior). For both kinds
of metric here (Pods with an average, External with an average) the ratio is the metric's sum over target times
replicas. Pods that are starting count as replicas with a metric of 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

TOLERANCE = 0.1


@dataclass(frozen=True)
class Metric:
    """`target` is what a replica should have on average; `fold` makes one number of all pods' values."""

    name: str
    target: float
    fold: str = "sum"


@dataclass(frozen=True)
class Policy:
    """At most `value` pods, or percent of them, in `period` seconds."""

    kind: Literal["Pods", "Percent"]
    value: int
    period: float


@dataclass(frozen=True)
class Direction:
    """`window` is the stabilisation in seconds."""

    window: float
    policies: tuple[Policy, ...]


@dataclass(frozen=True)
class ScalerSettings:
    """A scaler as the chart writes it. With `activation` (KEDA) a stage may be at `minimum` 0.

    `poll` seconds lie between two looks of KEDA, which matter from and to zero alone: above it the HPA asks, and KEDA
    asks Prometheus then. `cooldown` is how long nothing must be active before the last replica goes; `wakers` are the
    metrics that are active above 0.
    """

    metrics: tuple[Metric, ...]
    minimum: int
    maximum: int
    up: Direction
    down: Direction
    activation: bool = False
    poll: float = 15.0
    cooldown: float = 300.0
    wakers: tuple[str, ...] = ()


class Autoscaler:
    """Decides for one stage. Call `decide` once every sync period, in order of time."""

    def __init__(self, settings: ScalerSettings) -> None:
        self._settings = settings
        self._wanted: list[tuple[float, int]] = []  # what was wanted when, before it was bounded
        self._changes: list[tuple[float, int]] = []  # what was changed when

    def decide(self, now: float, replicas: int, sums: Mapping[str, float]) -> int:
        """The replicas to have now. `sums` has metrics as their `fold` makes them; one that it lacks is left out."""
        settings = self._settings
        known = [metric for metric in settings.metrics if metric.name in sums]
        wanted = max((_wanted(metric, sums[metric.name], replicas) for metric in known), default=replicas)
        if not self._wanted:
            self._wanted.append((now, replicas))
        result = self._limited(now, replicas, self._stabilised(now, replicas, wanted))
        result = min(max(result, settings.minimum, 1), settings.maximum)
        if result != replicas:
            self._changes.append((now, result - replicas))
        return result

    def _stabilised(self, now: float, replicas: int, wanted: int) -> int:
        """Not above the least that was wanted within the window upwards, nor below the most within that downwards."""
        up, down = self._settings.up.window, self._settings.down.window
        self._wanted = [(when, count) for when, count in self._wanted if when > now - max(up, down)]
        least = min([wanted, *(count for when, count in self._wanted if when > now - up)])
        most = max([wanted, *(count for when, count in self._wanted if when > now - down)])
        self._wanted.append((now, wanted))
        return min(max(replicas, least), most)

    def _limited(self, now: float, replicas: int, wanted: int) -> int:
        if wanted > replicas:
            return min(wanted, max(self._limit(policy, now, replicas, 1) for policy in self._settings.up.policies))
        if wanted < replicas:
            return max(wanted, min(self._limit(policy, now, replicas, -1) for policy in self._settings.down.policies))
        return replicas

    def _limit(self, policy: Policy, now: float, replicas: int, sign: int) -> int:
        """The furthest that a policy lets go in the direction of `sign`, from where its period began."""
        changed = sum(by for when, by in self._changes if when > now - policy.period and by * sign > 0)
        start = replicas - changed
        if policy.kind == "Pods":
            return start + sign * policy.value
        factor = 1 + sign * policy.value / 100
        return math.ceil(start * factor) if sign > 0 else int(start * factor)


def _wanted(metric: Metric, total: float, replicas: int) -> int:
    ratio = total / (metric.target * replicas)
    if abs(ratio - 1) <= TOLERANCE:
        return replicas
    # A hair above a whole number is an error of floating point, not a replica.
    return math.ceil(round(total / metric.target, 9))


class Activation:
    """KEDA's other half: from zero as soon as a metric is above 0, to zero when none has been for the cooldown."""

    def __init__(self, settings: ScalerSettings, now: float) -> None:
        self._settings = settings
        self._active = now

    def decide(self, now: float, replicas: int, sums: Mapping[str, float]) -> int:
        """Call at every poll."""
        active = any(sums.get(name, 0.0) > 0 for name in self._settings.wakers)
        if active:
            self._active = now
            return replicas or max(1, self._settings.minimum)
        if self._settings.minimum == 0 and now - self._active >= self._settings.cooldown:
            return 0
        return replicas
