"""The work stream between vision and the Q-Formers: one queue, from which each consumer takes when it has room.

A consumer reads as many references at once as its batch holds, and has at most two reads under way, as
services/qformer/worker.py. Of those that wait for work, the one that has waited longest gets it, as Redis does.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial

from cli.capacity.batcher import Batcher, Work
from cli.capacity.clock import Clock
from cli.capacity.fleet import Fleet
from cli.capacity.request import Outcome


@dataclass(frozen=True)
class BusLimits:
    """`max_backlog` references unread or unfinished, `reads` under way in a consumer, `count` references in one."""

    max_backlog: int = 1024
    reads: int = 2
    count: int = 16


class Bus:
    """Joins what vision publishes to the consumers in a fleet of batchers."""

    def __init__(self, clock: Clock, consumers: Fleet[Batcher], limits: BusLimits) -> None:
        self._clock, self._consumers, self._limits = clock, consumers, limits
        self._unread: deque[tuple[Work, float]] = deque()
        self._unfinished = 0
        self._reads: dict[Batcher, int] = {}
        self._idle: deque[Batcher] = deque()
        consumers.on_ready.append(self._joined)
        for consumer in consumers.ready:
            self._joined(consumer)

    @property
    def backlog(self) -> int:
        """Entries that nobody has finished, as the Q-Formers export it."""
        return self._unfinished

    def publish(self, work: Work) -> None:
        if self._unfinished >= self._limits.max_backlog:
            work.failed("refused")
            return
        self._unfinished += 1
        self._unread.append((work, self._clock.now))
        self._hand_out()

    def _joined(self, consumer: Batcher) -> None:
        self._reads[consumer] = 0
        self._idle.append(consumer)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._unread and self._idle:
            consumer = self._idle.popleft()
            if consumer.retired:
                continue
            count = min(self._limits.count, len(self._unread))
            self._read(consumer, [self._unread.popleft() for _ in range(count)])

    def _read(self, consumer: Batcher, entries: list[tuple[Work, float]]) -> None:
        self._reads[consumer] += 1
        if self._reads[consumer] < self._limits.reads:
            self._idle.append(consumer)
        left = [len(entries)]
        for work, published in entries:
            done = partial(self._done, consumer, left, work, self._clock.now - published)
            consumer.submit(Work(done, partial(self._failed, consumer, left, work), work.deadline))

    def _done(self, consumer: Batcher, left: list[int], work: Work, on_bus: float, in_batcher: float) -> None:
        self._ended(consumer, left)
        work.done(on_bus + in_batcher)

    def _failed(self, consumer: Batcher, left: list[int], work: Work, why: Outcome) -> None:
        self._ended(consumer, left)
        work.failed(why)

    def _ended(self, consumer: Batcher, left: list[int]) -> None:
        self._unfinished -= 1
        left[0] -= 1
        if left[0]:
            return
        if self._reads[consumer] == self._limits.reads and not consumer.retired:
            self._idle.append(consumer)
        self._reads[consumer] -= 1
        self._hand_out()
