"""Replays arrivals over measured stage times: who waited where, when each first text came, which replicas there were.

Left out: losses on the way, faults and retries, the network between nodes, tenants, processors shared between stages,
pods that cannot be placed. docs/capacity.md says what follows from that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from cli.capacity.arrivals import Arrival
from cli.capacity.batcher import Batcher
from cli.capacity.bus import Bus, BusLimits
from cli.capacity.clock import Clock
from cli.capacity.control import Control, Gauges, Scaling
from cli.capacity.engine import Engine, EngineLimits
from cli.capacity.fleet import Fleet
from cli.capacity.journey import Gateway, Journey, Stages, Terms
from cli.capacity.request import STAGES, Request
from cli.capacity.routes import Connections, Routes
from cli.capacity.stage_times import StageTimes

# What the programs export, and queries over it: the stage, and what of its replicas is added up.
GAUGES = {
    "ziya_gateway_in_flight": ("gateway", "in_flight"),
    "ziya_vision_batch_backlog_seconds": ("vision", "backlog_seconds"),
    "rate(ziya_vision_batch_compute_seconds_sum[1m])": ("vision", "busy"),
    "ziya_qformer_batch_backlog_seconds": ("qformer", "backlog_seconds"),
    "rate(ziya_qformer_batch_compute_seconds_sum[1m])": ("qformer", "busy"),
    "ziya_qformer_bus_backlog": ("qformer", "backlog"),
    "ziya_llama_waiting": ("llama", "waiting"),
    "ziya_llama_running": ("llama", "running"),
    "ziya_llama_kv_use": ("llama", "kv_use"),
}


@dataclass(frozen=True)
class Limits:
    """What bounds each stage; the defaults are the programs' own. Times in seconds."""

    terms: Terms = field(default_factory=Terms)
    vision_max_batch: int = 16
    qformer_max_batch: int = 16
    max_queue: int = 128
    bus_max_backlog: int = 1024
    bus_reads: int = 2
    engine: EngineLimits = field(default_factory=EngineLimits)
    request_timeout: float = 60.0


@dataclass(frozen=True)
class Outcome:
    """`changes` by stage: (seconds, replicas wanted, ready). `busy` by stage: seconds computed by all replicas."""

    requests: Sequence[Request]
    changes: Mapping[str, Sequence[tuple[float, int, int]]]
    busy: Mapping[str, float]
    seconds: float

    def first_tokens(self, begin: float = 0.0, end: float = float("inf")) -> list[float]:
        """Seconds to the first text of the answered requests that arrived in this time."""
        return [r.first_token for r in self.requests if r.outcome == "answered" and begin <= r.arrival.at < end]

    def count(self, outcome: str) -> int:
        return sum(request.outcome == outcome for request in self.requests)


def simulate(
    arrivals: Sequence[Arrival],
    times: StageTimes,
    limits: Limits,
    replicas: Mapping[str, int],
    *,
    scaling: Scaling | None = None,
    seed: int = 0,
) -> Outcome:
    """`replicas` a stage at the start; with `scaling` they change. The same arguments give the same outcome."""
    draw = np.random.default_rng([seed, 1])  # another stream than that of arrivals made from the same seed
    clock = Clock()
    connections = scaling.connections if scaling else Connections()
    world = _World(clock, times, limits, replicas, connections, draw)
    requests = [_request(arrival, times, limits) for arrival in arrivals]
    for request in requests:
        clock.at(request.arrival.at, partial(world.journey.begin, request))
    last = arrivals[-1].at if arrivals else 0.0
    if scaling:
        Control(clock, scaling, world.fleets, world.gauges(), draw)
    clock.run(lambda: world.journey.ended < len(requests), last + limits.request_timeout)
    for request in requests:
        request.outcome = request.outcome or "expired"  # by then everybody's time is over
    busy = {stage: sum(replica.busy_seconds for replica in fleet.all) for stage, fleet in world.fleets.items()}
    return Outcome(requests, {stage: fleet.changes for stage, fleet in world.fleets.items()}, busy, clock.now)


def _request(arrival: Arrival, times: StageTimes, limits: Limits) -> Request:
    tokens = arrival.prompt_tokens + (times.image_tokens if arrival.image is not None else 0)
    return Request(arrival, tokens, arrival.at + limits.request_timeout)


class _World:
    """All stages, joined."""

    def __init__(
        self,
        clock: Clock,
        times: StageTimes,
        limits: Limits,
        replicas: Mapping[str, int],
        connections: Connections,
        draw: np.random.Generator,
    ) -> None:
        def batcher(stage: str, max_batch: int) -> Fleet[Batcher]:
            own = getattr(times, stage)
            make = partial(Batcher, clock, own, draw, max_batch=max_batch, max_queue=limits.max_queue)
            return Fleet(clock, make, start_seconds=own.start_seconds, count=replicas[stage])

        vision = batcher("vision", limits.vision_max_batch)
        qformer = batcher("qformer", limits.qformer_max_batch)
        engine = partial(Engine, clock, times.llama, limits.engine)
        llama = Fleet(clock, engine, start_seconds=times.llama.start_seconds, count=replicas["llama"])

        def gateway() -> Gateway:
            return Gateway(clock, Routes(clock, vision, connections, draw), Routes(clock, llama, connections, draw))

        gateways = Fleet(clock, gateway, start_seconds=times.gateway.start_seconds, count=replicas["gateway"])
        bus = Bus(clock, qformer, BusLimits(limits.bus_max_backlog, limits.bus_reads, limits.qformer_max_batch))
        self.bus, self._clock = bus, clock
        self._busy = {stage: _Rate() for stage in STAGES}
        self.fleets: dict[str, Fleet[Any]] = dict(zip(STAGES, (gateways, vision, qformer, llama), strict=True))
        self.journey = Journey(clock, times, Stages(gateways, vision, qformer, llama, bus), limits.terms, draw)

    def gauges(self) -> Gauges:
        """The metrics that scalers may read."""
        return {name: partial(self._gauge, *where) for name, where in GAUGES.items()}

    def _gauge(self, stage: str, value: str) -> float:
        fleet = self.fleets[stage]
        if value == "backlog":
            return float(self.bus.backlog if fleet.ready else 0)  # nobody tells of it without a replica
        if value == "busy":
            return self._busy[stage].per_second(self._clock.now, sum(replica.busy_seconds for replica in fleet.all))
        return float(sum(getattr(replica, value) for replica in fleet.ready))


class _Rate:
    """Of a counter over the last minute, as Prometheus computes it from its samples."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()

    def per_second(self, now: float, count: float) -> float:
        self._samples.append((now, count))
        while self._samples[0][0] < now - 60.0:
            self._samples.popleft()
        (first, before), (last, after) = self._samples[0], self._samples[-1]
        return (after - before) / (last - first) if last > first else 0.0
