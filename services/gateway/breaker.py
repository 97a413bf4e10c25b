"""Whether Redis is worth asking.

The first request that finds Redis gone opens the breaker; all later ones go inline at once instead of
each waiting for its own timeout. Half-open is a probe in the background, not a client's request: when a
ping succeeds the breaker closes again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ziya.errors import BusUnavailable


class Breaker:
    """`closed` is true while the bus is believed to work. `report` is told of every change."""

    def __init__(self, ping: Callable[[], Awaitable[None]], *, interval: float, report: Callable[[bool], None]) -> None:
        self._ping = ping
        self._interval = interval
        self._report = report
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

    async def close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)

    async def _until_back(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self._ping()
            except BusUnavailable:
                continue
            self._probe = None
            self._report(True)
            return
