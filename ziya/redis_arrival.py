"""Whether Redis has answered once, which a process waits for before it says that it is ready.

Else a pod whose network or password is wrong would join its peers, and every request through it would take the slow
path. But nobody depends on Redis: when the patience is over the process is ready without it, and what becomes of Redis
later changes nothing here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Self

from ziya.bus import Bus
from ziya.errors import BusUnavailable
from ziya.settings import ProcessSettings

PAUSE_SECONDS = 0.25
log = logging.getLogger(__name__)


class RedisArrival:
    """One a process; its patience (seconds, 0 for none) begins when it is made.

    `over` is false while there is something to wait for.
    """

    def __init__(self, bus: Bus, patience: float) -> None:
        self._bus, self._patience = bus, patience
        self._until = time.monotonic() + patience
        self.over = patience == 0

    @classmethod
    def of(cls, bus: Bus, settings: ProcessSettings) -> Self:
        """With the patience that a program's settings name."""
        return cls(bus, settings.redis_start_seconds)

    async def wait(self) -> None:
        """Returns when Redis has answered, or the patience is over."""
        told = False
        while not self.over:
            try:
                await self._bus.ping()
                self.over = True
            except BusUnavailable as error:
                if time.monotonic() >= self._until:
                    log.warning("going on without Redis after %g seconds: %s", self._patience, error)
                    self.over = True
                    return
                if not told:
                    log.warning("not ready before Redis answers, or in %g seconds: %s", self._patience, error)
                    told = True
                await asyncio.sleep(PAUSE_SECONDS)
