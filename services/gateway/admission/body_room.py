"""Bytes of request bodies that are held at once: requests are few, and each may bring a picture of many megabytes.

A body is held from its first block to the end of its request, for its pictures are. What does not fit is refused while
it comes in, not when it is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from services.gateway.admission.metrics import AdmissionMetrics
from services.gateway.keys.api_keys import Caller
from ziya.errors import Overloaded


class Body:
    """What one request holds, in bytes."""

    def __init__(self, room: BodyRoom, caller: Caller) -> None:
        self._room, self._caller = room, caller
        self.size = 0

    def grow(self, size: int) -> None:
        """Raises Overloaded when so many more do not fit; a body that is alone always does."""
        self._room.take(size, self.size, self._caller)
        self.size += size


class BodyRoom:
    """`bound` is in bytes, over all requests."""

    def __init__(self, bound: int, metrics: AdmissionMetrics) -> None:
        self._bound, self._metrics = bound, metrics
        self._held = 0

    @contextmanager
    def body(self, caller: Caller) -> Iterator[Body]:
        """One body, until the end of its request."""
        body = Body(self, caller)
        try:
            yield body
        finally:
            self._held -= body.size
            self._metrics.body_bytes.set(self._held)

    def take(self, size: int, own: int, caller: Caller) -> None:
        """`own`: what this body holds already."""
        if self._held > own and self._held + size > self._bound:
            self._metrics.shed("bytes", caller.key.name)
            raise Overloaded(f"the bodies of requests being answered hold {self._held} bytes already")
        self._held += size
        self._metrics.body_bytes.set(self._held)
