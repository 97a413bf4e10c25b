"""Waiting for visual tokens: one stream reader a process, however many requests wait.

A waiter registers first and then looks, so that a key announced before, between or after is found. An
error announced while nobody here waited is kept for a few seconds and told to the first who asks: the
Q-Former may be quicker to refuse an image than a busy engine is to ask for it. When the reader loses
Redis, every waiter is told at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from ziya.errors import BusUnavailable, DeadlineExceeded, VisualTokensMissing, ZiyaError, from_line
from ziya.redis_link import LARGEST_VALUE, RedisLink, entries_of
from ziya.work_stream import READY, backoff

KEEP_ERRORS_SECONDS = 5.0
MAX_ERRORS = 1000
log = logging.getLogger(__name__)


class _Linked(Protocol):
    """What is needed of a bus."""

    @property
    def link(self) -> RedisLink: ...


class Announcements:
    """Reads the announcement stream from `start` on. Use inside one event loop.

    Of a value under a key no more than `largest` bytes and one are read.
    """

    def __init__(self, bus: _Linked, largest: int = LARGEST_VALUE) -> None:
        self._link, self._largest = bus.link, largest
        self._waiting: dict[str, set[asyncio.Future[bytes]]] = {}
        self._listening: dict[str, list[Callable[[], object]]] = {}
        self._errors: dict[str, tuple[float, str]] = {}  # key -> (monotonic seconds, line)
        self._position: bytes | None = None  # None: nothing is being read, so nobody may wait
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to read; an unreachable Redis is no error here, since it may come back."""
        with suppress(BusUnavailable):
            self._position = await self._latest()
        self._reader = asyncio.create_task(self._read())

    async def close(self) -> None:
        """Stops reading; whoever still waits gets BusUnavailable."""
        if self._reader is not None:
            self._reader.cancel()
            with suppress(asyncio.CancelledError):
                await self._reader
        self._lose("this process is stopping")

    @property
    def is_read(self) -> bool:
        """Whether announcements are being read: Redis is there."""
        return self._position is not None

    @contextmanager
    def listening(self, key: str, told: Callable[[], object]) -> Iterator[None]:
        """Calls `told` when `key` is announced while the block runs; nothing is looked for under the key."""
        self._listening.setdefault(key, []).append(told)
        try:
            yield
        finally:
            self._listening[key].remove(told)
            if not self._listening[key]:
                del self._listening[key]

    async def wait(self, key: str, deadline: float) -> bytes:
        """The bytes under `key`, now or as soon as they are announced. `deadline` is in unix seconds.

        Raises the announced error, DeadlineExceeded, BusUnavailable (at once when Redis is lost), or
        VisualTokensMissing when the bytes are gone although they were announced.
        """
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, set()).add(future)
        try:
            async with asyncio.timeout(deadline - time.time()):
                [value] = await self._link.values([key], self._largest)
                if value is not None:
                    return value
                if line := self._recent_error(key):
                    raise from_line(line)
                if self._position is None and not future.done():
                    raise BusUnavailable("announcements are not being read: Redis was lost")
                return await future
        except TimeoutError:
            raise DeadlineExceeded("the visual tokens did not come in time") from None
        except DeadlineExceeded as error:
            # Announced: the work of somebody with less time was dropped. This waiter can have it done again.
            raise VisualTokensMissing(f"{key} was not computed: {error.message}") from None
        finally:
            self._leave(key, future)

    def _leave(self, key: str, future: asyncio.Future[bytes]) -> None:
        if future.done() and not future.cancelled():
            future.exception()  # it may have come too late to be awaited; asyncio would complain
        if waiters := self._waiting.get(key):
            waiters.discard(future)
            if not waiters:
                del self._waiting[key]

    async def _latest(self) -> bytes:
        entries = await self._link.call("XREVRANGE", READY, "+", "-", "COUNT", 1)
        return bytes(entries[0][0]) if entries else b"0-0"

    async def _read(self) -> None:
        failures, block = 0, ("BLOCK", self._link.block_milliseconds)
        while True:
            try:
                if self._position is None:
                    self._position = await self._latest()
                at = self._position
                reply = await self._link.call("XREAD", "COUNT", 512, *block, "STREAMS", READY, at)
                failures = 0
                if reply:
                    entries = entries_of(reply[0][1])
                    await self._tell(fields for _, fields in entries)
                    self._position = entries[-1][0]
            except BusUnavailable as error:
                failures += 1
                log.warning("announcements lost the bus", extra={"error": str(error), "failures": failures})
                self._lose(str(error))
                await asyncio.sleep(backoff(failures))

    def _lose(self, reason: str) -> None:
        self._position = None
        for future in self._futures(list(self._waiting)):
            future.set_exception(BusUnavailable(reason))

    async def _tell(self, announced: Iterable[dict[bytes, bytes]]) -> None:
        ready = []
        for fields in announced:
            key, line = (fields.get(name, b"").decode(errors="replace") for name in (b"key", b"error"))
            if not line:
                ready.append(key)
                for told in list(self._listening.get(key, ())):
                    told()
            elif not self._fail(key, from_line(line)):
                self._remember(key, line)
        await self._give([key for key in dict.fromkeys(ready) if key in self._waiting])

    async def _give(self, keys: list[str]) -> None:
        values = await self._link.values(keys, self._largest)
        for key, value in zip(keys, values, strict=True):
            if value is None:
                self._fail(key, VisualTokensMissing(f"{key} was announced, but its bytes are gone"))
                continue
            for future in self._futures([key]):
                future.set_result(value)

    def _fail(self, key: str, error: ZiyaError) -> bool:
        """Tells all who wait for `key`; whether there was anyone."""
        waiters = self._futures([key])
        for future in waiters:
            future.set_exception(error)
        return bool(waiters)

    def _futures(self, keys: list[str]) -> list[asyncio.Future[bytes]]:
        return [future for key in keys for future in self._waiting.get(key, ()) if not future.done()]

    def _remember(self, key: str, line: str) -> None:
        self._errors.pop(key, None)
        self._errors[key] = (time.monotonic(), line)
        while len(self._errors) > MAX_ERRORS:
            del self._errors[next(iter(self._errors))]

    def _recent_error(self, key: str) -> str:
        told, line = self._errors.pop(key, (0.0, ""))
        return line if time.monotonic() - told < KEEP_ERRORS_SECONDS else ""
