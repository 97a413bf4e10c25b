"""How soon scalers answer to load, in simulation: to a step, and to a request that finds no replica of an encoder."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks import machine
from benchmarks.scaling_candidates import Candidate
from benchmarks.scaling_traces import Trace, step
from cli.capacity.arrivals import Arrival
from cli.capacity.chart_settings import limits_of, read_values
from cli.capacity.control import Scaling
from cli.capacity.simulate import Outcome, simulate
from cli.capacity.stage_times import StageTimes

STEP_AT = 120.0
PATIENCE_SECONDS = 30.0  # the gateway's: for so long it asks again for a stage that is not there
Replay = Callable[[Scaling, Trace, StageTimes, int], Outcome]


@dataclass(frozen=True)
class Reaction:
    """Seconds from the step: first decision, enough replicas ready, 15 s without a late or refused request."""

    decided: float
    ready: float
    well: float


def reaction(outcome: Outcome, late: float) -> Reaction:
    """Of the language model."""
    later = [change for change in outcome.changes["llama"] if change[0] >= STEP_AT]
    enough = next((at for at, _, ready in later if ready >= 3), math.inf)
    bad = [r.arrival.at for r in outcome.requests if r.outcome != "answered" or r.first_token > late]
    moments = (STEP_AT + 5.0 * number for number in range(97))
    well = next((at for at in moments if not any(at <= one < at + 15 for one in bad)), math.inf)
    return Reaction(later[0][0] - STEP_AT, enough - STEP_AT, well - STEP_AT)


def to_a_step(
    tried: Sequence[tuple[str, Candidate]], times: StageTimes, seeds: int, late: float, replay: Replay
) -> str:
    """From 10 to 60 requests a second, with scalers of a kind and a candidate's settings."""
    rows, trace = [], step(10.0, 60.0, STEP_AT, STEP_AT + 500.0, STEP_AT + 500.0)
    for kind, candidate in tried:
        found = [reaction(replay(candidate.scaling(kind), trace, times, seed), late) for seed in range(seeds)]
        columns = ([getattr(one, name) for one in found] for name in ("decided", "ready", "well"))
        rows.append([f"{kind}, {candidate.name}", *map(_middle, columns)])
    return machine.table(["s after the step", "first decision", "3 models ready", "requests well again"], rows)


def from_zero(times: StageTimes, seeds: int) -> str:
    """One request with a picture, when vision and Q-Former have been taken to zero."""
    rows = []
    for poll in (15, 5):
        zero = {"vision.scaling.min": 0, "qformer.scaling.min": 0, "autoscaling.pollSeconds": poll}
        scaling, firsts = Candidate("", zero).scaling(), []
        for seed in range(seeds):
            replicas = {"gateway": 2, "vision": 0, "qformer": 0, "llama": 1}
            asked = [Arrival(600.0, "a picture")]
            outcome = simulate(asked, times, limits_of(read_values([])), replicas, scaling=scaling, seed=seed)
            firsts += outcome.first_tokens()
        beyond = sum(first > PATIENCE_SECONDS for first in firsts) / len(firsts)
        rows.append([f"pollSeconds {poll}", _middle(firsts), f"{beyond:.0%}"])
    return machine.table(["keda, from no encoder", "s to the first token", f"later than {PATIENCE_SECONDS:g} s"], rows)


def _middle(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.0f} ({max(seconds):.0f})"
