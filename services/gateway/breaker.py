"""Whether Redis is worth asking.

The first request that finds Redis gone opens the breaker; all later ones go inline at once instead of each waiting for
its own timeout. So does a Redis that answers, but slowly, several times in a row: an answer takes a dozen commands, one
after another in three processes, and inline it takes none. Half-open is a probe in the background, not a client's
request: when a ping succeeds, and soon enough, the breaker closes again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from ziya.errors import BusUnavailable

SLOW_IN_A_ROW = 3
SLOW_SECONDS = 0.2


class Breaker:
    """`closed` is true while the bus is believed to work. `report` is told of every change.

    `slow`: seconds from which an answer of Redis is called slow.
    """

    def __init__(
        self,
        ping: Callable[[], Awaitable[None]],
        *,
        interval: float,
        report: Callable[[bool], None],
        slow: float = SLOW_SECONDS,
    ) -> None:
        self._ping = ping
        self._interval = interval
        self._report = report
        self._slow = slow
        self._slow_answers = 0
        self._counted = 0.0  # when the last answer came that was counted, in monotonic seconds
        self._probe: asyncio.Task[None] | None = None
        report(True)

    @property
    def closed(self) -> bool:
        return self._probe is None

    def trip(self) -> None:
        """Opens the breaker and starts the probe; does nothing when it is open already."""
        if self._probe is None:
            self._report(False)
            self._probe = asyncio.create_task(self._until_back())

    def answered(self, asked: float) -> None:
        """Redis was asked at that time (monotonic) and has answered now; several slow answers open the breaker.

        Of questions side by side one is counted: a moment in which this very process was busy delays them all.
        """
        now = time.monotonic()
        if now - asked < self._slow:
            self._slow_answers = 0
        elif asked >= self._counted:
            self._slow_answers, self._counted = self._slow_answers + 1, now
            if self._slow_answers >= SLOW_IN_A_ROW:
                self.trip()

    async def close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)

    async def _until_back(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            began = time.monotonic()
            try:
                await self._ping()
            except BusUnavailable:
                continue
            if time.monotonic() - began < self._slow:
                self._slow_answers = 0
                self._probe = None
                self._report(True)
                return
