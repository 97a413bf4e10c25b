"""When text leaves the engine: gathered for each event loop, handed over in one call.

Each piece costs its way to the client, on processors that the model may need: so pieces go out at most once an
interval, a short one while few requests run. What nobody should wait for goes at once: a first piece, a last
one, an error.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from services.llama.engine.seam import Delta
from services.llama.engine.sequence import Sequence
from services.llama.engine.stream import NativeStream
from ziya.errors import ZiyaError

Parcel = tuple[NativeStream, Delta | ZiyaError]


class Delivery:
    """Belongs to the engine's thread. Intervals are in seconds; up to `few` running requests the short one holds."""

    def __init__(self, interval: float, *, few: int, few_interval: float) -> None:
        self._interval, self._few, self._few_interval = interval, few, few_interval
        self._flushed = 0.0
        self._parcels: dict[asyncio.AbstractEventLoop, list[Parcel]] = {}

    def put(self, stream: NativeStream, outcome: Delta | ZiyaError) -> None:
        self._parcels.setdefault(stream.loop, []).append((stream, outcome))

    def gather(self, running: Iterable[tuple[Sequence, NativeStream]], count: int, now: float) -> None:
        """Takes the new text of those that are due; `count` requests are running."""
        due = now - self._flushed >= (self._few_interval if count <= self._few else self._interval)
        if due:
            self._flushed = now
        for sequence, stream in running:
            if (due or not sequence.delivered) and (delta := sequence.take(now)):
                self.put(stream, delta)

    def send(self) -> None:
        parcels, self._parcels = self._parcels, {}
        for loop, batch in parcels.items():
            with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody reads any more
                loop.call_soon_threadsafe(_unpack, batch)


def _unpack(batch: list[Parcel]) -> None:
    for stream, outcome in batch:
        stream.push(outcome)
