"""One process's connections to Redis: bounded, impatient, and with one error, BusUnavailable.

Whatever goes wrong (refused, timed out, out of memory, loading, read only) means the same to a caller:
do without the bus. Every command is tried twice, because a pooled connection may have died since its
last use; more patience would only delay the inline path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError, ResponseError

from ziya.errors import BusUnavailable
from ziya.redis_login import RedisLogin

# As large as an envelope may be (ziya/wire.py).
LARGEST_VALUE = 16 << 20
# In place of a list or a hash that lies where bytes should: like them, it is no envelope, and has to be thrown away.
NO_STRING = b"\0"
Entry = tuple[bytes, dict[bytes, bytes]]
Command = Sequence[str | bytes | int | float]


class FreshTls(SSLConnection):
    """Opens its files for every connection; redis-py keeps what it read for as long as the object lives."""

    async def connect(self) -> None:
        self.ssl_context.context = None
        await super().connect()  # type: ignore[no-untyped-call]


class RedisLink:
    """Raw commands on a pool of at most `connections`. `timeout` is in seconds, per command."""

    def __init__(self, url: str, *, timeout: float, connections: int = 32, login: RedisLogin | None = None) -> None:
        self.timeout = timeout
        self.place = _place(url)
        login = login or RedisLogin()
        where: dict[str, Any] = {**parse_url(login.bare(url)), **login.options(url)}
        if where.get("connection_class") is SSLConnection:
            where["connection_class"] = FreshTls
        keepalive: dict[str, Any] = {} if url.startswith("unix:") else {"socket_keepalive": True}
        pool = BlockingConnectionPool(
            **where,
            max_connections=connections,
            timeout=timeout,
            # Time is kept here, around each command: with a socket_timeout of its own, redis-py sends through
            # asyncio.wait_for, which on Python 3.11 can swallow a cancellation, and makes a task for each send.
            socket_timeout=None,
            socket_connect_timeout=timeout,
            health_check_interval=30,
            retry=Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.1), retries=1),
            protocol=2,  # nothing here needs RESP3, and its maintenance handshake costs round trips
            driver_info=None,
            **keepalive,
        )
        self._redis = Redis.from_pool(pool)
        self._redis.response_callbacks.clear()  # replies as Redis gives them

    @property
    def block_milliseconds(self) -> int:
        """The longest that a blocking read may wait without looking like an outage."""
        return max(1, int(self.timeout * 500))

    async def call(self, *command: str | bytes | int | float, tolerate: str | tuple[str, ...] = ()) -> Any:
        """The reply to a command; None for an error reply that begins with (one of) `tolerate`."""
        try:
            async with asyncio.timeout(self.timeout):
                return await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]
        except ResponseError as error:
            if str(error).startswith(tolerate):
                return None
            raise self._unavailable(error) from error
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error

    async def pipeline(self, commands: Sequence[Command], *, atomic: bool = False, tolerate: str = "") -> list[Any]:
        """The replies to several commands sent in one round trip; with `atomic`, all are carried out or none.

        A full Redis refuses only what takes memory: without `atomic` the others are carried out even so. In place of
        an error reply that begins with `tolerate` stands None.
        """
        if not commands:
            return []
        try:
            async with asyncio.timeout(self.timeout), self._redis.pipeline(transaction=atomic) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                replies = list(await pipe.execute(raise_on_error=not tolerate))
            return [self._tolerated(reply, tolerate) for reply in replies] if tolerate else replies
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error

    async def values(self, keys: Sequence[str], largest: int = LARGEST_VALUE) -> list[bytes | None]:
        """What lies under keys, in one round trip; None for nothing.

        No more than `largest` bytes and one are read of any value, whatever a stranger has put there: the one byte too
        many is what `wire.unpack` refuses it for.
        """
        replies = await self.pipeline([["GETRANGE", key, 0, largest] for key in keys], tolerate="WRONGTYPE")
        return [NO_STRING if reply is None else bytes(reply) or None for reply in replies]

    async def close(self) -> None:
        await self._redis.aclose()

    @staticmethod
    def _tolerated(reply: Any, beginning: str) -> Any:
        if not isinstance(reply, RedisError):
            return reply
        if str(reply).startswith(beginning):
            return None
        raise reply

    def _unavailable(self, error: Exception) -> BusUnavailable:
        reason = str(error) or f"no answer within {self.timeout:g} s"
        return BusUnavailable(f"Redis at {self.place} cannot be used: {reason}")


def entries_of(reply: Sequence[Any] | None) -> list[Entry]:
    """Stream entries, as XRANGE and XCLAIM give them, with their fields as dicts; leaves out what was deleted."""
    return [(entry, dict(zip(flat[::2], flat[1::2], strict=True))) for entry, flat in filter(None, reply or ())]


def _place(url: str) -> str:
    """Where a Redis URL points, without user and password."""
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or 6379}"
