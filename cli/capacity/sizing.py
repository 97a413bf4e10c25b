"""The least replicas a stage that keep the 99th percentile of the time to first token, and what is scarce then.

A stage gets at least what its work needs at its best throughput, with a tenth to spare: above that a queue grows with
any bad luck. From there replicas are added where requests are refused or wait longest until the target is met, and
taken away again wherever it still is. All candidates are tried with the same three traces of arrivals, and the target
is met when it is with each of them.
The bottleneck is what gives way when the load grows: the stage of which one replica more then helps most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cli.capacity.arrivals import Arrival, poisson, steady
from cli.capacity.request import STAGES, Request
from cli.capacity.simulate import Limits, Outcome, simulate
from cli.capacity.stage_times import StageTimes
from cli.capacity.workload import Goal, alone, loads
from cli.text import CommandError

BUSIEST = 0.9
MOST_REPLICAS = 1000
WARM_UP = 0.1  # of the time: caches and queues fill
LEAST_REQUESTS, LEAST_SECONDS = 3000, 30.0
MOST_FAILED = 0.001
SEEDS = 3
GROWTH = (1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 3.0, 4.0)
NOT_MET = math.inf

Replicas = Mapping[str, int]


@dataclass(frozen=True)
class Stage:
    """`utilisation` is work over what the replicas do at their best, `wait` the 99th percentile of queueing in seconds.

    `one_less` is the 99th percentile of the first token with a replica less: infinite where requests then fail.
    """

    replicas: int
    utilisation: float
    wait: float
    one_less: float


@dataclass(frozen=True)
class Plan:
    """`p99` of each trace, in seconds. `gives_way` is the rate at which the goal is missed, and
    `bottleneck` the stage to enlarge then; infinite when it is met at four times the rate."""

    stages: Mapping[str, Stage]
    p50: float
    p99: tuple[float, ...]
    bottleneck: str
    gives_way: float
    requests: int


class Sizing:
    """The search for one goal; deterministic for a seed. `tell` hears what is being tried."""

    def __init__(
        self, goal: Goal, times: StageTimes, limits: Limits, seed: int, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self._goal, self._times, self._limits, self._seed = goal, times, limits, seed
        self._tell = tell
        self._loads = loads(goal.rps, goal.mix, times, limits)
        self._traces: dict[tuple[float, int], list[Arrival]] = {}
        self._tried: dict[tuple[float, int, tuple[int, ...]], Outcome] = {}

    def plan(self) -> Plan:
        """Raises CommandError where no number of replicas meets the goal."""
        self._check_floor()
        replicas = self._fewer(self._enough(self._least()))
        outcome = self._outcome(replicas)
        p50 = float(np.median([request.first_token for request in _answered(outcome)]))
        p99 = tuple(_p99(self._outcome(replicas, seed=seed)) for seed in self._seeds)
        bottleneck, gives_way = self._bottleneck(replicas)
        stages = {name: self._stage(name, replicas, outcome) for name in STAGES}
        return Plan(stages, p50, p99, bottleneck, gives_way, len(outcome.requests))

    def _check_floor(self) -> None:
        parts = alone(self._goal.mix, self._times, self._limits)
        floor = sum(parts.values())
        if floor >= self._goal.p99:
            longest = sorted(parts.items(), key=lambda part: -part[1])
            raise CommandError(
                f"no number of replicas gives a first token within {_ms(self._goal.p99)}: a request alone takes "
                f"{_ms(floor)} ({', '.join(f'{name} {_ms(seconds)}' for name, seconds in longest)})"
            )

    def _least(self) -> dict[str, int]:
        least = {name: max(1, math.ceil(load / BUSIEST)) for name, load in self._loads.items()}
        name = max(least, key=lambda name: least[name])
        if least[name] > MOST_REPLICAS:
            raise CommandError(
                f"{self._goal.rps:g} requests a second need {least[name]} replicas of {name}: too many to plan"
            )
        return least

    def _enough(self, replicas: dict[str, int]) -> dict[str, int]:
        """Adds replicas where requests are refused, or else where slow ones wait longest."""
        most = {name: 10 + 10 * math.ceil(self._loads[name]) for name in STAGES}
        while not self._meets(replicas):
            worst = max((self._outcome(replicas, seed=seed) for seed in self._seeds), key=_p99)
            slow = [r for r in _counted(worst) if not r.first_token <= self._goal.p99]
            name = max(STAGES, key=lambda name: _blamed(name, slow))
            replicas = {**replicas, name: replicas[name] + max(1, replicas[name] // 8)}
            if replicas[name] > most[name]:
                raise CommandError(self._hopeless(replicas))
        return replicas

    def _hopeless(self, replicas: Replicas) -> str:
        reached = max(_p99(self._outcome(replicas, seed=seed)) for seed in self._seeds)
        got = "requests are still refused" if reached == NOT_MET else f"the 99th percentile is {_ms(reached)}"
        had = ", ".join(f"{count} {name}" for name, count in replicas.items())
        return (
            f"more replicas do not bring the first token within {_ms(self._goal.p99)}: with {had} {got}; "
            "a batch or a step of the language model takes too long by itself"
        )

    def _fewer(self, replicas: dict[str, int]) -> dict[str, int]:
        least = self._least()
        for name in sorted(STAGES, key=lambda name: -replicas[name]):
            while replicas[name] > least[name] and self._meets({**replicas, name: replicas[name] - 1}):
                replicas = {**replicas, name: replicas[name] - 1}
        return replicas

    def _bottleneck(self, replicas: Replicas) -> tuple[str, float]:
        busiest = max(STAGES, key=lambda name: self._loads[name] / replicas[name])
        rates = [self._goal.rps * growth for growth in GROWTH]
        rate = next((rate for rate in rates if _p99(self._outcome(replicas, rate)) > self._goal.p99), None)
        if rate is None:
            return busiest, math.inf
        enlarged = {name: self._outcome({**replicas, name: replicas[name] + 1}, rate) for name in STAGES}
        return min(STAGES, key=lambda name: (_p99(enlarged[name]), -len(_answered(enlarged[name])))), rate

    @property
    def _seeds(self) -> range:
        return range(self._seed, self._seed + SEEDS)

    def _meets(self, replicas: Replicas) -> bool:
        """With all seeds: one trace may be lucky."""
        return all(_p99(self._outcome(replicas, seed=seed)) <= self._goal.p99 for seed in self._seeds)

    def _outcome(self, replicas: Replicas, rate: float | None = None, seed: int | None = None) -> Outcome:
        rate, seed = rate or self._goal.rps, self._seed if seed is None else seed
        key = (rate, seed, tuple(replicas[name] for name in STAGES))
        if key not in self._tried:
            had = ", ".join(f"{count} {name}" for name, count in replicas.items())
            self._tell(f"trying {had} with {rate:g} requests a second")
            self._tried[key] = simulate(self._trace(rate, seed), self._times, self._limits, replicas, seed=seed)
        return self._tried[key]

    def _trace(self, rate: float, seed: int) -> list[Arrival]:
        if (rate, seed) not in self._traces:
            seconds = max(LEAST_SECONDS, LEAST_REQUESTS / rate) / (1 - WARM_UP)
            self._traces[rate, seed] = poisson(steady(rate), rate, seconds, self._goal.mix, seed)
        return self._traces[rate, seed]

    def _stage(self, name: str, replicas: Replicas, outcome: Outcome) -> Stage:
        waits = [request.waits[name] for request in _answered(outcome) if name in request.waits]
        wait = float(np.percentile(waits, 99)) if waits else 0.0
        fewer = {**replicas, name: replicas[name] - 1}
        possible = fewer[name] and self._loads[name] < fewer[name]
        one_less = max(_p99(self._outcome(fewer, seed=seed)) for seed in self._seeds) if possible else NOT_MET
        return Stage(replicas[name], self._loads[name] / replicas[name], wait, one_less)


def _counted(outcome: Outcome) -> Sequence[Request]:
    return outcome.requests[int(WARM_UP * len(outcome.requests)) :]


def _answered(outcome: Outcome) -> list[Request]:
    return [request for request in _counted(outcome) if request.outcome == "answered"]


def _p99(outcome: Outcome) -> float:
    """Infinite when more than one request in a thousand is refused or too late."""
    answered = _answered(outcome)
    if len(answered) < (1 - MOST_FAILED) * len(_counted(outcome)):
        return NOT_MET
    return float(np.percentile([request.first_token for request in answered], 99))


def _blamed(stage: str, slow: Sequence[Request]) -> tuple[int, float]:
    """How many of the slow requests it refused, and for how long they waited for it."""
    refused = sum(request.refused_by == stage for request in slow)
    return refused, sum(request.waits.get(stage, 0.0) for request in slow)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"
