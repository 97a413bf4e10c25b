"""One run of a piece of work for all callers that ask for it at the same time under the same key.

The work runs in a task of its own: a caller that goes away does not take it from the others, and the
last caller to go cancels it. A caller who joined and then meets the *first* caller's deadline tries
again under its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ziya.errors import Cancelled, DeadlineExceeded

ResultT = TypeVar("ResultT")


@dataclass(eq=False, slots=True)
class _Flight(Generic[ResultT]):
    task: asyncio.Task[ResultT]
    waiters: int = 0


class SingleFlight(Generic[ResultT]):
    """Equal keys in flight share one result, or one error."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[ResultT]] = {}

    async def do(self, key: str, work: Callable[[], Awaitable[ResultT]]) -> tuple[ResultT, bool]:
        """The result, and whether another caller's run gave it."""
        while True:
            joined = key in self._flights
            try:
                return await self._wait(key, self._flights.get(key) or self._launch(key, work)), joined
            except (Cancelled, DeadlineExceeded):
                if not joined:
                    raise

    def _launch(self, key: str, work: Callable[[], Awaitable[ResultT]]) -> _Flight[ResultT]:
        async def fly() -> ResultT:
            return await work()

        flight = self._flights[key] = _Flight(asyncio.create_task(fly()))
        flight.task.add_done_callback(lambda _: self._forget(key, flight))
        flight.task.add_done_callback(lambda task: task.cancelled() or task.exception())  # seen, even if all have gone
        return flight

    async def _wait(self, key: str, flight: _Flight[ResultT]) -> ResultT:
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                self._forget(key, flight)
                flight.task.cancel()

    def _forget(self, key: str, flight: _Flight[ResultT]) -> None:
        # A cancelled flight ends later than a new one under its key may begin.
        if self._flights.get(key) is flight:
            del self._flights[key]
