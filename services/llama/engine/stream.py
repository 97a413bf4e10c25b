"""An answer on its way from the engine's thread to an event loop.

The engine pushes on the loop (one wake-up for all streams of a step); the reader takes whatever has gathered
as one delta, so a slow reader gets fewer and larger pieces instead of a growing queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.llama.engine.seam import Delta
from ziya.errors import ZiyaError


class NativeStream:
    """Belongs to the loop that made it: everything but the engine's own bookkeeping happens there."""

    def __init__(self, loop: asyncio.AbstractEventLoop, cancel: Callable[[], None]) -> None:
        self.loop = loop
        self._cancel = cancel
        self._delta: Delta | None = None
        self._error: ZiyaError | None = None
        self._ended = False
        self._news = asyncio.Event()

    def __aiter__(self) -> NativeStream:
        return self

    async def __anext__(self) -> Delta:
        await self._news.wait()
        delta, self._delta = self._delta, None
        if delta is not None:
            if not self._ended:
                self._news.clear()
            return delta
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        raise StopAsyncIteration

    def cancel(self) -> None:
        if not self._ended:
            self._cancel()

    def push(self, outcome: Delta | ZiyaError) -> None:
        if isinstance(outcome, Delta):
            self._delta = outcome if self._delta is None else self._delta.merge(outcome)
            self._ended = self._ended or bool(outcome.finish_reason)
        else:
            self._error, self._ended = outcome, True
        self._news.set()
