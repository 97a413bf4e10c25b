"""The visual-token bus on Redis: a claim-check store, not a pipe.

Tensors lie under content keys with a time to live; what travels on streams is a reference of a few
hundred bytes. One stream a hop, one consumer group a service, acknowledged after the result is stored
and announced, claimed by a peer when its consumer dies: work may run twice and must be idempotent. A
second stream announces finished keys to all who wait. Everything here can vanish at any moment, and
then every method raises BusUnavailable, and callers take the direct path.

`WorkStream` and `Consumer` hold the queue; `Announcements` (ziya/announcements.py) the waiting.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Self

from ziya.announcements import Announcements
from ziya.consumer import Consumer, Role
from ziya.errors import ZiyaError
from ziya.redis_link import RedisLink
from ziya.redis_login import RedisLogin
from ziya.settings import ProcessSettings
from ziya.telemetry import Metrics
from ziya.work_stream import READY, WORK, Delivery, Work, WorkStream, announcement

__all__ = ["READY", "WORK", "Announcements", "Bus", "Delivery", "Work"]


class Bus:
    """One a process. `url` is redis://, rediss:// or unix://; `timeout` is in seconds, per command.

    At most `max_backlog` references wait for the Q-Former. Every method raises BusUnavailable, and no
    other error of Redis, when Redis cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 2.0,
        max_backlog: int = 1024,
        metrics: Metrics | None = None,
        login: RedisLogin | None = None,
    ) -> None:
        metrics = metrics if metrics is not None else Metrics("bus")
        self.link = RedisLink(url, timeout=timeout, login=login)
        self._stream = WorkStream(self.link, max_backlog=max_backlog, metrics=metrics)

    @classmethod
    def of(cls, settings: ProcessSettings, metrics: Metrics | None = None) -> Self:
        """The bus that a program's settings name."""
        return cls(
            settings.redis_url,
            timeout=settings.bus_timeout,
            max_backlog=settings.bus_max_backlog,
            metrics=metrics,
            login=RedisLogin.of(settings),
        )

    async def ping(self) -> None:
        await self.link.call("PING")

    async def put(self, key: str, payload: bytes, ttl: float) -> None:
        """Stores bytes for `ttl` seconds."""
        await self.link.call("SET", key, payload, "PX", _milliseconds(ttl))

    async def get(self, key: str) -> bytes | None:
        """The bytes under a key; None when there are none (any more)."""
        return (await self.link.values([key]))[0]

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The bytes under several keys, in one round trip."""
        return await self.link.values(keys)

    async def touch(self, keys: Sequence[str], ttl: float) -> list[bool]:
        """Which keys exist; those that do live on for `ttl` seconds from now."""
        replies = await self.link.pipeline([["PEXPIRE", key, _milliseconds(ttl)] for key in keys])
        return [bool(reply) for reply in replies]

    async def drop(self, keys: Sequence[str]) -> None:
        """Throws away what lies under keys, good or not."""
        await self.link.call("UNLINK", *keys)

    async def publish(self, work: Work) -> str:
        """Queues work for the Q-Former; its id. Raises Overloaded when the backlog is at its limit."""
        return await self._stream.publish(work)

    async def put_and_publish(self, key: str, payload: bytes, ttl: float, work: Work) -> str:
        """`put` and then `publish`, in one round trip."""
        return await self._stream.publish(work, before=[["SET", key, payload, "PX", _milliseconds(ttl)]])

    async def withdraw(self, work_ids: Sequence[str]) -> None:
        """Takes back what `publish` has queued, because nobody waits for it any more."""
        await self._stream.withdraw(work_ids)

    async def wanted(self, deliveries: Sequence[Delivery]) -> list[bool]:
        """Which deliveries have not been withdrawn since they were read."""
        return await self._stream.wanted(deliveries)

    async def backlog(self) -> int:
        """References that nobody has finished, read or not."""
        return await self._stream.backlog()

    def consume(
        self, group: str, consumer: str, *, count: int, claim_idle: float = 10.0, max_deliveries: int = 3
    ) -> AsyncGenerator[list[Delivery], None]:
        """Batches of at most `count` deliveries, for ever, also across outages.

        A peer that has not finished or renewed an entry for `claim_idle` seconds loses it; an entry that
        would be delivered more than `max_deliveries` times is given up and its error announced.
        """
        role = Role(group, consumer, count, claim_idle, max_deliveries)
        return Consumer(self.link, self._stream, role).deliveries()

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Finishes deliveries, after their results are stored and announced."""
        await self._stream.acknowledge(deliveries)

    async def announce(self, key: str, error: ZiyaError | None = None) -> None:
        """Tells every waiting process that `key` is there, or why it will not be."""
        await self.link.call(*announcement(key, error))

    async def finish(self, outcomes: Sequence[tuple[Delivery, bytes | ZiyaError | None]], ttl: float) -> None:
        """`put` (of tokens), `announce` (them or the error) and `acknowledge`: one round trip, all or nothing.

        Of withdrawn work (None) nobody is told.
        """
        await self._stream.finish(outcomes, _milliseconds(ttl))

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """No longer claims deliveries that will not be finished here: they are delivered again after a while."""
        self._stream.release(deliveries)

    async def deliver(self, key: str, payload: bytes, ttl: float) -> None:
        """`put` and then `announce`, in one round trip."""
        await self.link.pipeline([["SET", key, payload, "PX", _milliseconds(ttl)], announcement(key, None)])

    async def close(self) -> None:
        await self.link.close()


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
