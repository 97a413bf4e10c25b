"""Vision's queue, and the Q-Former's: the rules of ziya/batching.py, with measured seconds in place of a model.

An idle batcher begins at once; what comes while a batch runs forms the next one. The queue is bounded, and what is too
late when a batch begins is dropped. Decoding takes no time here, so there is nothing announced to wait for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from cli.capacity.clock import Clock
from cli.capacity.request import Outcome
from cli.capacity.stage_times import BatchTimes


@dataclass(eq=False, slots=True)
class Work:
    """One image. `done` gets the seconds that it waited; `failed` gets why it was not computed."""

    done: Callable[[float], None]
    failed: Callable[[Outcome], None]
    deadline: float
    arrived: float = 0.0


class Batcher:
    """A replica: one batch at a time, of `max_batch` at most; `max_queue` may wait."""

    def __init__(
        self, clock: Clock, times: BatchTimes, draw: np.random.Generator, *, max_batch: int, max_queue: int
    ) -> None:
        self._clock, self._times, self._draw = clock, times, draw
        self._max_batch, self._max_queue = max_batch, max_queue
        self._queue: deque[Work] = deque()
        self._running = False
        self._seconds_each = 0.0
        self.busy_seconds = 0.0
        self.retired = False

    @property
    def backlog_seconds(self) -> float:
        """As the program exports it: those that wait, times what one took lately."""
        return len(self._queue) * self._seconds_each

    def submit(self, work: Work) -> None:
        if len(self._queue) >= self._max_queue:
            work.failed("refused")
            return
        work.arrived = self._clock.now
        self._queue.append(work)
        # At the same moment, but after all that comes at this moment: they reach an idle batcher together.
        self._clock.after(0.0, self._dispatch)

    def _dispatch(self) -> None:
        if self._running:
            return
        now, batch = self._clock.now, list[Work]()
        while self._queue and len(batch) < self._max_batch:
            work = self._queue.popleft()
            if work.deadline <= now:
                work.failed("expired")
            else:
                batch.append(work)
        if batch:
            self._running = True
            seconds = self._times.batch(len(batch)) * self._noise()
            self._clock.after(seconds, partial(self._ran, batch, now, seconds))

    def _ran(self, batch: list[Work], started: float, seconds: float) -> None:
        self._running = False
        self.busy_seconds += seconds
        each = seconds / len(batch)
        self._seconds_each += (each - self._seconds_each) * (0.2 if self._seconds_each else 1.0)
        for work in batch:
            work.done(started - work.arrived)
        self._dispatch()

    def _noise(self) -> float:
        """Gamma with mean 1: always 1 for a spread of 0, an exponential for 1."""
        variance = self._times.spread**2
        return float(self._draw.gamma(1 / variance, variance)) if variance else 1.0
