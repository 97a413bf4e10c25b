"""The replicas of a stage: how many are wanted, which of them are there, and when that changed.

A new replica is there after its start time. One that is taken away gets nothing new and ends what it has; those that
have not started go first, then the youngest, as a ReplicaSet chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Generic, Protocol, TypeVar

from cli.capacity.clock import Clock


class Replica(Protocol):
    """`busy_seconds` is for how long it has computed; `retired` is set when it is taken away."""

    busy_seconds: float
    retired: bool


ReplicaT = TypeVar("ReplicaT", bound=Replica)


class Fleet(Generic[ReplicaT]):
    """`make` gives a replica; `count` of them are there from the beginning."""

    def __init__(self, clock: Clock, make: Callable[[], ReplicaT], *, start_seconds: float, count: int) -> None:
        self._clock, self._make, self._start_seconds = clock, make, start_seconds
        self.ready: list[ReplicaT] = [make() for _ in range(count)]
        self._starting: list[ReplicaT] = []
        self.all: list[ReplicaT] = list(self.ready)
        self.changes: list[tuple[float, int, int]] = [(0.0, count, count)]  # seconds, wanted, ready
        self.on_ready: list[Callable[[ReplicaT], None]] = []
        self.on_retired: list[Callable[[], None]] = []

    @property
    def wanted(self) -> int:
        return len(self.ready) + len(self._starting)

    def resize(self, count: int) -> None:
        """Starts or retires replicas until `count` are wanted."""
        if count == self.wanted:
            return
        while self.wanted < count:
            replica = self._make()
            self._starting.append(replica)
            self.all.append(replica)
            self._clock.after(self._start_seconds, partial(self._started, replica))
        while self.wanted > count:
            (self._starting or self.ready).pop().retired = True
            for told in self.on_retired:
                told()
        self._note()

    def _started(self, replica: ReplicaT) -> None:
        if replica.retired:
            return
        self._starting.remove(replica)
        self.ready.append(replica)
        self._note()
        for told in self.on_ready:
            told(replica)

    def _note(self) -> None:
        self.changes.append((self._clock.now, self.wanted, len(self.ready)))
