"""The reading end of the work stream: new entries at once, a dead peer's entries on a slow timer.

A read blocks on the server and wakes the moment that work is published. Taking over is rare, so it is
looked for only every `claim_idle / 2` seconds: XPENDING gives what has been idle and how often it was
delivered, and XCLAIM takes an entry only if it is still idle, so that of two peers one gets it. While
the consumer lives it renews its claim on what it holds, until the work's own deadline.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass

from ziya.errors import BusUnavailable, Internal
from ziya.redis_link import RedisLink, entries_of
from ziya.work_stream import WORK, Delivery, Work, WorkStream, announcement, backoff

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Role:
    """Who reads, how many entries at once, and when a peer's entry counts as abandoned (seconds, times)."""

    group: str
    consumer: str
    count: int
    claim_idle: float
    max_deliveries: int

    @property
    def idle_milliseconds(self) -> int:
        return max(1, int(self.claim_idle * 1000))


class Consumer:
    """Reads deliveries for one role. One to a process and group; the stream is the owner of what is held."""

    def __init__(self, link: RedisLink, stream: WorkStream, role: Role) -> None:
        self._link, self._stream, self._role = link, stream, role
        self._next_claim = 0.0

    async def deliveries(self) -> AsyncGenerator[list[Delivery], None]:
        """Batches for ever. After an outage it goes on, with the group made again if that was lost."""
        renewing = asyncio.create_task(self._renew())
        failures, joined = 0, False
        try:
            while True:
                try:
                    if not joined:
                        await self._join()
                        joined = True
                    batch = await self._next()
                    failures = 0
                except BusUnavailable as error:
                    joined, failures = False, failures + 1
                    log.warning("the consumer lost the bus", extra={"error": str(error), "failures": failures})
                    await asyncio.sleep(backoff(failures))
                    continue
                if batch:
                    yield batch
        finally:
            renewing.cancel()
            with suppress(asyncio.CancelledError):
                await renewing

    async def _join(self) -> None:
        # From the beginning of the stream: work published before there was a group is work, too.
        # A full Redis refuses to create even a group that is there, and needs its work done all the more.
        known = ("BUSYGROUP", "command not allowed when used memory")
        await self._link.call("XGROUP", "CREATE", WORK, self._role.group, "0", "MKSTREAM", tolerate=known)

    async def _next(self) -> list[Delivery]:
        if time.monotonic() >= self._next_claim:
            if abandoned := await self._claim():
                return abandoned
            self._next_claim = time.monotonic() + self._role.claim_idle / 2
        return await self._read()

    async def _read(self) -> list[Delivery]:
        until_claim = int((self._next_claim - time.monotonic()) * 1000)
        block = max(1, min(self._link.block_milliseconds, until_claim))
        who = ("GROUP", self._role.group, self._role.consumer)
        reply = await self._link.call(
            "XREADGROUP", *who, "COUNT", self._role.count, "BLOCK", block, "STREAMS", WORK, ">"
        )
        return await self._decode([(*entry, 1) for entry in entries_of(reply and reply[0][1])])

    async def _claim(self) -> list[Delivery]:
        role = self._role
        pending = await self._link.call(
            "XPENDING", WORK, role.group, "IDLE", role.idle_milliseconds, "-", "+", role.count
        )
        times = {entry: delivered for entry, _consumer, _idle, delivered in pending}
        mine = {entry.encode() for entry in self._stream.held}
        if not (wanted := [entry for entry in times if entry not in mine]):
            return []
        reply = await self._link.call("XCLAIM", WORK, role.group, role.consumer, role.idle_milliseconds, *wanted)
        entries = entries_of(reply)
        if len(entries) < len(wanted):
            await self._forget_deleted(set(wanted) - {entry[0] for entry in entries})
        self._stream.claimed.inc(len(entries))
        return await self._decode([(entry, fields, times[entry] + 1) for entry, fields in entries])

    async def _forget_deleted(self, entries: set[bytes]) -> None:
        """Redis before 7 keeps an entry pending that was deleted unacknowledged; nothing is left to do for it."""
        for entry in entries:
            if not await self._link.call("XRANGE", WORK, entry, entry):
                await self._link.call("XACK", WORK, self._role.group, entry)

    async def _decode(self, entries: list[tuple[bytes, dict[bytes, bytes], int]]) -> list[Delivery]:
        batch = []
        for raw, fields, deliveries in entries:
            entry = raw.decode()
            try:
                work = Work.from_fields(fields)
            except ValueError as error:
                await self._stream.bury(self._role.group, entry, fields, "undecodable", str(error))
                continue
            if deliveries > self._role.max_deliveries:
                await self._give_up(entry, fields, work)
                continue
            self._stream.held[entry] = work.deadline
            batch.append(Delivery(entry, work, deliveries, self._role.group))
        return batch

    async def _give_up(self, entry: str, fields: dict[bytes, bytes], work: Work) -> None:
        await self._stream.bury(self._role.group, entry, fields, "too many deliveries", work.request_id)
        error = Internal(f"the image's features were given up after {self._role.max_deliveries} attempts")
        await self._link.call(*announcement(work.tokens_key, error))

    async def _renew(self) -> None:
        """Keeps peers from taking work that this consumer is still busy with."""
        role = self._role
        while True:
            await asyncio.sleep(role.claim_idle / 3)
            now = time.time()
            if not (alive := [entry for entry, until in self._stream.held.items() if until > now]):
                continue
            with suppress(BusUnavailable):  # the reading loop notices, and says so
                await self._link.call("XCLAIM", WORK, role.group, role.consumer, 0, *alive, "JUSTID")
