"""Scaler settings to try against one another: values of the chart, rendered by Helm, and what is not a value yet."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from cli.capacity.chart_settings import CHART_VALUES, read_values, scaling_of
from cli.capacity.control import Scaling
from cli.capacity.routes import Connections
from cli.capacity.scaler import Metric
from cli.capacity.stage_times import StageTimes

HELM = Path(sys.executable).parent / "helm4"
# A larger vision tower and Q-Former, so that the encoders have to scale, too. Not measured: a guess at proportions.
SLOWER = {"vision": 20.0, "qformer": 50.0}


@dataclass(frozen=True)
class Candidate:
    """`values` over the chart's; `age` of connections and `resolve` between questions to the DNS, in seconds.

    `busy` is a further target for the encoders, in seconds computed a second. None leaves things as they are.
    """

    name: str
    values: Mapping[str, float] = field(default_factory=dict)
    age: float | None = None
    resolve: float | None = None
    busy: float | None = None

    def scaling(self, kind: str = "keda") -> Scaling:
        found = _rendered(kind, tuple(self.values.items()))
        if self.busy is not None:
            stages = dict(found.stages)
            for stage in ("vision", "qformer"):
                metric = Metric(f"rate(ziya_{stage}_batch_compute_seconds_sum[1m])", self.busy)
                stages[stage] = replace(stages[stage], metrics=(*stages[stage].metrics, metric))
            found = replace(found, stages=stages)
        own = found.connections
        return replace(found, connections=Connections(self.age or own.age, self.resolve or own.resolve))


@cache
def _rendered(kind: str, values: tuple[tuple[str, float], ...]) -> Scaling:
    command = [str(HELM), "template", "trial", str(CHART_VALUES.parent), "--api-versions", "keda.sh/v1alpha1"]
    for name, value in (("autoscaling.kind", kind), *values):
        command += ["--set-json", f"{name}={json.dumps(value)}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return scaling_of(done.stdout, read_values([]))


def slower(times: StageTimes) -> StageTimes:
    """The same with the encoders' batches SLOWER times as long."""
    changed = {}
    for stage, factor in SLOWER.items():
        own = getattr(times, stage)
        points = {size: factor * seconds for size, seconds in own.batch_seconds.items()}
        changed[stage] = own.model_copy(update={"batch_seconds": points})
    return times.model_copy(update=changed)


def _one(setting: str, value: float) -> Candidate:
    """The chart's own with one setting changed."""
    return Candidate(f"{setting.rpartition('.')[2]} {value:g}", {setting: value})


def _encoders(backlog: float, bus: int, busy: float | None = None) -> Candidate:
    values = {f"{stage}.scaling.backlogSeconds": backlog for stage in ("vision", "qformer")}
    name = f"backlogSeconds {backlog}, busBacklog {bus}" + (f", busy {busy}" if busy else "")
    return Candidate(name, {**values, "qformer.scaling.busBacklog": bus}, busy=busy)


CHART = Candidate("the chart's own")
# What gRPC does by itself, and connections of an age that is often recommended.
LONG = Candidate("connections end after 300 s, DNS every 30 s", age=300, resolve=30)
LANGUAGE_MODEL = (
    CHART,
    LONG,
    Candidate("connections end after 60 s", age=60),
    Candidate("DNS every 30 s", resolve=30),
    *(_one("llama.scaling.kvUse", use) for use in (0.8, 0.6, 0.4, 0.3)),
    *(_one("llama.scaling.waiting", waiting) for waiting in (2, 8)),
    *(_one("autoscaling.downSeconds", seconds) for seconds in (120, 600)),
    *(_one("gateway.scaling.inFlight", requests) for requests in (60, 40)),
)
ENCODERS = (
    *(_encoders(backlog, 32) for backlog in (0.5, 0.25, 0.1)),
    *(_encoders(backlog, 16) for backlog in (0.5, 0.25, 0.1)),
    _encoders(0.25, 8),
    *(_encoders(0.25, 16, busy) for busy in (0.9, 0.7)),
)
