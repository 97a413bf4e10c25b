"""`ziya plan`: how many replicas of each stage a load needs, and which stage would give way first."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cli.capacity.arrivals import Mix
from cli.capacity.chart_settings import Values, limits_of, number, read_values
from cli.capacity.request import STAGES
from cli.capacity.sizing import Plan, Sizing
from cli.capacity.stage_times import SHIPPED, StageTimes
from cli.capacity.workload import Goal
from cli.seconds import seconds
from cli.text import CommandError, say

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def plan(
    rps: Annotated[float, typer.Option(help="Requests a second, on average.")],
    p99_ttft: Annotated[str, typer.Option(metavar="TIME", help="99 % of first tokens come within it: 2s, 800ms.")],
    image_share: Annotated[float, typer.Option(help="Share of requests that show a picture.", min=0, max=1)] = 0.8,
    reuse: Annotated[float, typer.Option(help="Share of those whose picture was shown before.", min=0, max=1)] = 0.3,
    prompt_tokens: Annotated[int, typer.Option(help="Of a request's text, on average.", min=1)] = 64,
    answer_tokens: Annotated[int, typer.Option(help="Of an answer, on average.", min=1)] = 128,
    times: Annotated[
        Path | None, typer.Option(help="Measured stage times [default: ziya-tiny on 2 CPU cores].")
    ] = None,
    values: Annotated[
        list[Path] | None, typer.Option(help="Values over the chart's own, as with helm -f; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the arrivals; the same seed gives the same plan.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say how many replicas of each stage keep the time to the first token, and what the bottleneck is.

    Replays random arrivals over stage times that were measured (--times; docs/capacity.md tells how to measure your own
    machines) with the batches, slots and bounds of the chart's values, and looks for the least replicas.
    """
    if not (0 < rps < math.inf):
        raise CommandError(f"--rps must be above 0, not {rps:g}", 2)
    measured = StageTimes.load(times or SHIPPED)
    settings = read_values(values or [])
    goal = Goal(rps, seconds(p99_ttft, "--p99-ttft"), Mix(image_share, reuse, prompt_tokens, answer_tokens))
    with Console(stderr=True).status("trying") as status:
        found = Sizing(goal, measured, limits_of(settings), seed, status.update).plan()
    chart = _chart(found, settings)
    if as_json:
        say(json.dumps(_json(found, measured, chart), indent=2))
        return
    say(f"times: {measured.name}")
    if times is None:
        say("       (shipped with the program; measure your own machines and give them with --times)")
    _tell(found, chart, goal)


def _chart(found: Plan, values: Values) -> dict[str, int]:
    """The chart's values that say so: replicas where nothing scales, else the least and, if it is below, the most."""
    replicas = {stage: found.stages[stage].replicas for stage in STAGES}
    if values.get("autoscaling", {}).get("kind", "none") == "none":
        return {f"{stage}.replicas": count for stage, count in replicas.items()}
    chart = {f"{stage}.scaling.min": count for stage, count in replicas.items()}
    most = {stage: number(values, f"{stage}.scaling.max") for stage in STAGES}
    return chart | {f"{stage}.scaling.max": count for stage, count in replicas.items() if count > most[stage]}


def _tell(found: Plan, chart: Mapping[str, int], goal: Goal) -> None:
    say()
    say(f"{'stage':<10}{'replicas':>9}{'utilisation':>13}{'p99 wait':>11}{'p99 first token with one less':>32}")
    for name, stage in found.stages.items():
        less = "requests fail" if stage.one_less == math.inf else _ms(stage.one_less)
        say(f"{name:<10}{stage.replicas:>9}{stage.utilisation:>13.0%}{_ms(stage.wait):>11}{less:>32}")
    low, high = _ms(min(found.p99)), _ms(max(found.p99))
    say(f"\nfirst token: p50 {_ms(found.p50)}, p99 {low} to {high} in {len(found.p99)} simulated loads")
    if found.gives_way == math.inf:
        say(f"bottleneck: {found.bottleneck}, the busiest; four times the rate is answered in time, too")
    else:
        missed = f"at {found.gives_way:g} requests a second the first token comes later than {_ms(goal.p99)}"
        say(f"bottleneck: {found.bottleneck}; {missed}, and one more of it helps most")
    say("chart: " + " ".join(f"--set {name}={count}" for name, count in chart.items()))


def _json(found: Plan, measured: StageTimes, chart: Mapping[str, int]) -> dict[str, Any]:
    """What is infinite is null. Times in seconds."""
    stages = {
        name: {key: _finite(value) for key, value in asdict(stage).items()} for name, stage in found.stages.items()
    }
    return {
        "times": measured.name,
        "stages": stages,
        "p50": found.p50,
        "p99": [_finite(value) for value in found.p99],
        "bottleneck": found.bottleneck,
        "gives_way_at_rps": _finite(found.gives_way),
        "chart": dict(chart),
    }


def _finite(value: float) -> float | None:
    return None if value == math.inf else value


def _ms(seconds: float) -> str:
    if seconds >= 10 or seconds == math.inf:
        return f"{seconds:.0f} s"
    return f"{1000 * seconds:.0f} ms"
