"""How a gateway chooses a replica: gRPC's round robin over the addresses that its channel knows.

A channel asks the DNS for addresses when a connection ends, and then not again for some seconds. A server
ends a connection at its greatest age (give or take a tenth, as gRPC does), and so a replica that came later gets its
first calls only after up to that time: part of every reaction to load, and with few replicas the longest part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from cli.capacity.clock import Clock
from cli.capacity.fleet import Fleet, Replica
from ziya.rpc import DNS_MS

ReplicaT = TypeVar("ReplicaT", bound=Replica)


@dataclass(frozen=True)
class Connections:
    """`age` at which a server ends them, `resolve` between two questions to the DNS; in seconds.

    By itself gRPC asks every 30 s at most (its option dns_min_time_between_resolutions_ms); ziya/rpc.py has it ask
    sooner. With an infinite age all replicas must be there from the start.
    """

    age: float = math.inf
    resolve: float = DNS_MS / 1000


class Routes(Generic[ReplicaT]):
    """One gateway's channel to one stage."""

    def __init__(
        self, clock: Clock, fleet: Fleet[ReplicaT], connections: Connections, draw: np.random.Generator
    ) -> None:
        self._clock, self._fleet, self._connections, self._draw = clock, fleet, connections, draw
        self._known: list[ReplicaT] = []
        self._turn = int(draw.integers(1 << 16))
        self._waiting: list[Callable[[ReplicaT], None]] = []
        self._resolves_at = -math.inf  # the last question to the DNS, or the one that is to come
        fleet.on_retired.append(self._gone)
        fleet.on_ready.append(self._came)
        self._resolve()

    def call(self, use: Callable[[ReplicaT], None]) -> None:
        """Gives `use` the next replica; while there is none at all, it is kept until one is there."""
        if not self._known:
            self._waiting.append(use)
            return
        self._turn += 1
        use(self._known[self._turn % len(self._known)])

    def _came(self, replica: ReplicaT) -> None:
        """A channel without any address asks again and again; here it hears of the first at once."""
        if not self._known:
            self._resolve()
        waiting, self._waiting = self._waiting, []
        for use in waiting:
            self.call(use)

    def _gone(self) -> None:
        """What has ended its connection gets nothing more, whatever the DNS says."""
        left = [replica for replica in self._known if not replica.retired]
        if len(left) < len(self._known):
            self._known = left
            self._ask()

    def _ask(self) -> None:
        if self._resolves_at <= self._clock.now:
            self._resolves_at = max(self._clock.now, self._resolves_at + self._connections.resolve)
            self._clock.at(self._resolves_at, self._resolve)

    def _resolve(self) -> None:
        self._resolves_at = self._clock.now
        new = [replica for replica in self._fleet.ready if replica not in self._known]
        self._known = list(self._fleet.ready)
        for replica in new:
            self._connect(replica)

    def _connect(self, replica: ReplicaT) -> None:
        if self._connections.age != math.inf:
            self._clock.after(self._connections.age * self._draw.uniform(0.9, 1.1), partial(self._aged, replica))

    def _aged(self, replica: ReplicaT) -> None:
        if not replica.retired:
            self._ask()
            self._connect(replica)
