"""Which scaler settings are best, tried in simulation: the chart's own against candidates, on the same arrivals.

    python -m benchmarks.scaling [--times FILE] [--trace FILE …] [--plot docs/scaling.svg] [--seeds 2]

Replays three traces (a step, a day in half an hour, bursts), or recorded ones (cli/capacity/arrivals.py says how they
are written), over measured stage times, with the scalers that Helm renders from the chart. For each candidate it prints
what share of the requests got their first token late or were refused, and how many replicas that took. Then the
reaction to a step of load and from zero, and the plot of the first trace.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine
from benchmarks.scaling_candidates import CHART, ENCODERS, LANGUAGE_MODEL, LONG, SLOWER, Candidate, slower
from benchmarks.scaling_plot import plot
from benchmarks.scaling_reactions import from_zero, to_a_step
from benchmarks.scaling_traces import TRACES, Trace, recorded
from cli.capacity.chart_settings import limits_of, read_values
from cli.capacity.control import Scaling
from cli.capacity.simulate import Outcome, simulate
from cli.capacity.stage_times import SHIPPED, StageTimes

LATE_SECONDS = 2.0
REACTING = (("hpa", CHART), ("keda", CHART), ("keda", LONG))


@dataclass(frozen=True)
class Score:
    """Shares of all requests, and replicas wanted on average over the trace."""

    late: float
    refused: float
    encoders: float
    models: float


def score(outcome: Outcome, seconds: float) -> Score:
    total = len(outcome.requests)
    late = sum(first > LATE_SECONDS for first in outcome.first_tokens())
    vision, qformer, llama = (_mean(outcome.changes[stage], seconds) for stage in ("vision", "qformer", "llama"))
    return Score(late / total, 1 - outcome.count("answered") / total, vision + qformer, llama)


def _mean(changes: Sequence[tuple[float, int, int]], seconds: float) -> float:
    ends = [*(at for at, _, _ in changes[1:]), seconds]
    spans = ((wanted, end - at) for (at, wanted, _), end in zip(changes, ends, strict=True) if at < seconds)
    return sum(wanted * span for wanted, span in spans) / seconds


def replay(scaling: Scaling, trace: Trace, times: StageTimes, seed: int) -> Outcome:
    """From the scalers' least replicas on."""
    least = {stage: max(1, settings.minimum) for stage, settings in scaling.stages.items()}
    return simulate(trace.arrivals(seed), times, limits_of(read_values([])), least, scaling=scaling, seed=seed)


def sweep(candidates: Sequence[Candidate], traces: Sequence[Trace], times: StageTimes, seeds: int) -> str:
    rows = []
    for candidate in candidates:
        row = [candidate.name, *(cell for trace in traces for cell in _tried(candidate.scaling(), trace, times, seeds))]
        rows.append(row)
        print(" | ".join(row), file=sys.stderr, flush=True)
    head = [word for trace in traces for word in (f"{trace.name}: late + refused", "encoders + models")]
    return machine.table(["settings", *head], rows)


def _tried(scaling: Scaling, trace: Trace, times: StageTimes, seeds: int) -> tuple[str, str]:
    scores = [score(replay(scaling, trace, times, seed), trace.seconds) for seed in range(seeds)]

    def mean(name: str) -> float:
        return float(statistics.mean(getattr(one, name) for one in scores))

    shares = f"{100 * mean('late'):.1f} + {100 * mean('refused'):.1f} %"
    return shares, f"{mean('encoders'):.1f} + {mean('models'):.1f}"


def run(times: StageTimes, traces: Sequence[Trace], picture: Path | None, seeds: int) -> None:
    print(f"{machine.describe()}\n\nstage times: {times.name}\n{times.measured.get('where', '')}\n", flush=True)
    print(
        f"Late is above {LATE_SECONDS:g} s; {seeds} seeds.\n\n{sweep(LANGUAGE_MODEL, traces, times, seeds)}\n",
        flush=True,
    )
    factors = ", ".join(f"{stage} {factor:g} times" for stage, factor in SLOWER.items())
    print(f"Encoders made slower ({factors}):\n\n{sweep(ENCODERS, traces, slower(times), seeds)}\n", flush=True)
    print("Reaction, median (longest), to a step from 10 to 60 requests a second, and from zero:\n")
    print(f"{to_a_step(REACTING, times, 5 * seeds, LATE_SECONDS, replay)}\n", flush=True)
    print(f"{from_zero(times, 100 * seeds)}\n", flush=True)
    if picture is not None:
        shown = {one.name: replay(one.scaling(), traces[0], times, 0) for one in (LONG, CHART)}
        plot(shown, traces[0], LATE_SECONDS, picture)
        print(f"plot: {picture}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=Path, default=SHIPPED)
    parser.add_argument("--trace", type=Path, nargs="+", default=[], help="recorded traces instead")
    parser.add_argument("--plot", type=Path, help="SVG to write")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    traces = tuple(map(recorded, arguments.trace)) or TRACES
    run(StageTimes.load(arguments.times), traces, arguments.plot, arguments.seeds)


if __name__ == "__main__":
    main()
