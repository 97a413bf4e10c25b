"""How many may ask at once.

The bound is on requests in flight, and there is no queue in front of it: a client who is told to come
back after a second is better off than one who waits without knowing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ziya.errors import Overloaded, Unavailable


class Admission:
    """Bounded requests in flight."""

    def __init__(self, max_in_flight: int, retry_after: float = 1.0) -> None:
        self._max = max_in_flight
        self._retry_after = retry_after
        self.in_flight = 0
        self.draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def drain(self, seconds: float) -> None:
        """Lets nobody in any more, and waits at most so long until everybody has left."""
        self.draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Holds a place for one request. Raises Overloaded when there is none, Unavailable while draining."""
        if self.draining:
            raise Unavailable("this gateway is shutting down; ask again")
        if self.in_flight >= self._max:
            raise Overloaded(f"{self.in_flight} requests are being answered, which is the limit", self._retry_after)
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()
