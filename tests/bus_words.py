"""Short words for tests of the bus: some work, a consumer that comes and goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from ziya.bus import WORK, Bus, Delivery, Work

GROUP = "qformer"


def work(number: int = 0, seconds: float = 60.0) -> Work:
    return Work(f"ziya:features:{number}", f"ziya:tokens:{number}", "这是什么？", time.time() + seconds, f"r{number}")


def consume(bus: Bus, consumer: str = "one", **options: Any) -> Any:
    return aclosing(bus.consume(GROUP, consumer, **({"count": 8} | options)))  # type: ignore[type-var]


async def first(bus: Bus, consumer: str = "one", **options: Any) -> list[Delivery]:
    """The next batch, after which the consumer is gone, as a killed process would be."""
    async with consume(bus, consumer, **options) as batches:
        async for batch in batches:
            return list(batch)
    raise AssertionError("consuming never ends by itself")


async def pending(bus: Bus) -> int:
    return int((await bus.link.call("XPENDING", WORK, GROUP))[0])


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[Bus]:
    bus = Bus(url, **options)
    try:
        yield bus
    finally:
        await bus.close()


async def until_blocked(bus: Bus) -> None:
    """Returns when some client is blocked in a read."""
    async with asyncio.timeout(10):
        while b"blocked_clients:0" in await bus.link.call("INFO", "clients"):
            await asyncio.sleep(0.005)
