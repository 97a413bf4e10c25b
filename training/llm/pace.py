"""So many a minute, evenly: nobody is let through before those before him have used up their share of the time.

At first, and after a rest, a second's worth goes through at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

BURST_SECONDS = 1.0

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


class Pace:
    """`per_minute` of whatever is counted; None is no limit."""

    def __init__(self, per_minute: float | None, clock: Clock = time.monotonic, sleep: Sleep = asyncio.sleep) -> None:
        self._seconds_each = 60.0 / per_minute if per_minute else 0.0
        self._clock = clock
        self._sleep = sleep
        self._booked = clock() - BURST_SECONDS

    async def take(self, amount: float = 1.0) -> None:
        """Returns when `amount` may go. Whoever comes first goes first."""
        if not self._seconds_each:
            return
        now = self._clock()
        start = max(self._booked, now - BURST_SECONDS)
        self._booked = start + amount * self._seconds_each
        # What is larger than a burst goes when those before it are through, and holds up those behind it.
        if start > now:
            await self._sleep(start - now)

    def give_back(self, amount: float) -> None:
        """It was less than was taken."""
        self._booked -= amount * self._seconds_each
