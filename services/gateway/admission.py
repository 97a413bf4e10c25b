"""Who may ask, and how many at once.

The bound is on requests in flight, and there is no queue in front of it: a client who is told to come
back after a second is better off than one who waits without knowing.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ziya.errors import Overloaded, Unauthenticated, Unavailable


class Keys:
    """The API keys that open this gateway; none set means that everybody may ask."""

    def __init__(self, keys: tuple[str, ...], *, salted: bool = False) -> None:
        self._keys = tuple(key.encode() for key in keys)
        self._salted = salted

    def check(self, authorization: str) -> str:
        """The tenant's salt of an `Authorization` value ("" unless salted). Raises Unauthenticated."""
        if not self._keys:
            return ""
        scheme, _, given = authorization.strip().partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise Unauthenticated("an API key is needed: send the header `Authorization: Bearer KEY`")
        # All keys are compared, each in constant time: the time taken tells nothing about any of them.
        matches = [hmac.compare_digest(given.strip().encode(), key) for key in self._keys]
        if not any(matches):
            raise Unauthenticated("this API key is not known here")
        return hashlib.sha256(given.strip().encode()).hexdigest()[:32] if self._salted else ""


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
