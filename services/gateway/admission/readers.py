"""Requests whose bodies are still coming in: they hold a place at the door, and a slow one holds it long.

So that a key with many slow bodies does not keep others out, the door may take a place back: of the lowest priority, of
the key that has most bodies coming in for its weight, the one that has taken longest.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.gateway.admission.fair_order import rank
from services.gateway.admission.metrics import AdmissionMetrics
from services.gateway.keys.api_keys import Caller
from ziya.errors import Overloaded


@dataclass(eq=False, slots=True)
class _Reader:
    caller: Caller
    limit: asyncio.Timeout
    displaced: bool = False


class Readers:
    """In order of arrival. Use inside one event loop."""

    def __init__(self, metrics: AdmissionMetrics) -> None:
        self._metrics = metrics
        self._readers: list[_Reader] = []

    @asynccontextmanager
    async def reading(self, caller: Caller, seconds: float) -> AsyncIterator[None]:
        """Around the reading of a body. Raises TimeoutError after so long, Overloaded when another takes the place."""
        reader = _Reader(caller, asyncio.timeout(seconds))
        self._readers.append(reader)
        try:
            async with reader.limit:
                yield
        except TimeoutError:
            if not reader.displaced:
                raise
            raise Overloaded("other keys wait, and this request's body was long in coming") from None
        finally:
            self._readers.remove(reader)

    def displace(self, arrival: Caller) -> bool:
        """Takes a place back for a request that arrives, if there is one that gives way to it."""
        there = [reader for reader in self._readers if not reader.displaced]
        counts = Counter(reader.caller.key.name for reader in there)
        # of equal ones the first, the oldest
        last = max(there, key=lambda reader: rank(reader.caller, counts), default=None)
        if last is None or rank(last.caller, counts) <= rank(arrival, counts, 1):
            return False
        self._metrics.shed("displaced", last.caller.key.name)
        last.displaced = True
        last.limit.reschedule(asyncio.get_running_loop().time())
        return True
