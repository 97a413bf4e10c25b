"""Simulated time: actions in the order in which they are due; those due at the same time in the order they were set."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

Action = Callable[[], None]


class Clock:
    """Seconds from the start of the simulation."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Action]] = []
        self._order = itertools.count()

    def at(self, when: float, action: Action) -> None:
        heapq.heappush(self._due, (max(when, self.now), next(self._order), action))

    def after(self, seconds: float, action: Action) -> None:
        self.at(self.now + seconds, action)

    def run(self, going: Callable[[], bool] = lambda: True, until: float = math.inf) -> None:
        """Acts while there is something to do before `until`, and `going` says so: what repeats itself never ends."""
        while self._due and self._due[0][0] <= until and going():
            self.now, _, action = heapq.heappop(self._due)
            action()
