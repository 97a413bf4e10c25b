"""The scalers at work on simulated stages: what Prometheus last saw, the HPA's rounds, KEDA's polls.

A change of load is seen at the next scrape, acted upon at the next round, and felt when the new replica has started and
its callers have found it (routes.py). Scrapes and rounds run by themselves, with offsets drawn from the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from cli.capacity.clock import Clock
from cli.capacity.fleet import Fleet
from cli.capacity.routes import Connections
from cli.capacity.scaler import Activation, Autoscaler, ScalerSettings

SYNC_SECONDS = 15.0  # kube-controller-manager's default; a cluster's administrator can change it

Gauges = Mapping[str, Callable[[], float]]


@dataclass(frozen=True)
class Scaling:
    """The chart's scalers by stage, how often Prometheus reads its programs, and how gateways find new replicas."""

    stages: Mapping[str, ScalerSettings]
    scrape_seconds: float = 15.0
    connections: Connections = field(default_factory=Connections)


class Control:
    """Resizes fleets. `gauges` gives each metric's value now, over all pods of its stage."""

    def __init__(
        self,
        clock: Clock,
        scaling: Scaling,
        fleets: Mapping[str, Fleet[Any]],
        gauges: Gauges,
        draw: np.random.Generator,
    ) -> None:
        self._clock, self._gauges = clock, gauges
        self._seen: dict[str, float] = {}
        self._every(scaling.scrape_seconds, self._scrape, draw)
        for stage, settings in scaling.stages.items():
            fleet = fleets[stage]
            self._every(SYNC_SECONDS, partial(self._sync, fleet, Autoscaler(settings)), draw)
            if settings.activation:
                self._every(settings.poll, partial(self._poll, fleet, Activation(settings, 0.0)), draw)

    def _every(self, period: float, act: Callable[[], None], draw: np.random.Generator) -> None:
        def again() -> None:
            act()
            self._clock.after(period, again)

        self._clock.at(draw.uniform(0, period), again)

    def _scrape(self) -> None:
        self._seen = {name: value() for name, value in self._gauges.items()}

    def _sync(self, fleet: Fleet[Any], scaler: Autoscaler) -> None:
        # An HPA leaves a target of no replicas alone.
        if fleet.wanted and self._seen:
            fleet.resize(scaler.decide(self._clock.now, fleet.wanted, self._seen))

    def _poll(self, fleet: Fleet[Any], activation: Activation) -> None:
        # KEDA asks Prometheus at its poll, and Prometheus answers with its last scrape.
        if self._seen:
            fleet.resize(activation.decide(self._clock.now, fleet.wanted, self._seen))
