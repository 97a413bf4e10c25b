"""What is broken, and healed again, as data: a name and a coroutine that does both."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.chaos.hostile import spoil
from tests.chaos.scene import Scene

OUTAGE_SECONDS = 3.0
FROZEN_SECONDS = 4.0
SLOW_SECONDS = 8.0
FULL_SECONDS = 8.0

Break = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """`ends_answers`: answers that had begun may be broken off, if their clients are told. `leaving`: clients leave."""

    name: str
    strike: Break
    ends_answers: bool = False
    leaving: bool = False


def kill(name: str) -> Break:
    async def strike(scene: Scene) -> None:
        await scene.kill(name)

    return strike


def drain(name: str) -> Break:
    async def strike(scene: Scene) -> None:
        await scene.kill(name, signal.SIGTERM)

    return strike


def freeze(name: str) -> Break:
    async def strike(scene: Scene) -> None:
        victim = await asyncio.to_thread(scene.process, name)
        victim.suspend()
        try:
            await scene.holding(FROZEN_SECONDS)
        finally:
            victim.resume()

    return strike


async def redis_down(scene: Scene) -> None:
    scene.redis.kill()
    try:
        await scene.holding(OUTAGE_SECONDS)
    finally:
        await asyncio.to_thread(scene.redis.start)


async def redis_frozen(scene: Scene) -> None:
    scene.redis.freeze()
    try:
        await scene.holding(FROZEN_SECONDS)
    finally:
        scene.redis.thaw()


async def redis_emptied(scene: Scene) -> None:
    await asyncio.to_thread(scene.client.flushall)


def redis_slow(delay: float) -> Break:
    async def strike(scene: Scene) -> None:
        scene.proxy.delay = delay
        try:
            await scene.holding(SLOW_SECONDS)
        finally:
            scene.proxy.delay = 0.0

    return strike


async def redis_full(scene: Scene) -> None:
    """Not a byte more, and nothing may be thrown out."""
    client = scene.client
    before = client.config_get("maxmemory*")
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    try:
        await scene.holding(FULL_SECONDS)
    finally:
        client.config_set("maxmemory", before["maxmemory"])
        client.config_set("maxmemory-policy", before["maxmemory-policy"])


async def bus_spoilt(scene: Scene) -> None:
    for _ in range(5):
        await asyncio.to_thread(spoil, scene.client)
        await asyncio.sleep(0.2)


async def nothing(_scene: Scene) -> None:
    pass


def both(one: Break, other: Break) -> Break:
    async def strike(scene: Scene) -> None:
        await asyncio.gather(one(scene), other(scene))

    return strike


SINGLE = (
    Fault("vision-killed", kill("vision")),
    Fault("qformer-killed", kill("qformer")),
    Fault("triton-killed", kill("triton"), ends_answers=True),
    Fault("engine-killed", kill("engine"), ends_answers=True),
    Fault("redis-killed", redis_down),
    Fault("redis-emptied", redis_emptied),
    Fault("redis-slow", redis_slow(0.3)),
    Fault("redis-hangs", redis_frozen),
    Fault("redis-full", redis_full),
    Fault("vision-frozen", freeze("vision")),
    Fault("qformer-frozen", freeze("qformer")),
    Fault("triton-frozen", freeze("triton")),
    Fault("engine-frozen", freeze("engine"), ends_answers=True),  # Triton takes it for dead
    Fault("bus-spoilt", bus_spoilt),
    Fault("clients-leave", nothing, leaving=True),
    Fault("vision-drained", drain("vision")),
    Fault("qformer-drained", drain("qformer")),
    Fault("triton-drained", drain("triton")),
    Fault("gateway-drained", drain("gateway")),
)
PAIRS = (
    Fault("vision+qformer-killed", both(kill("vision"), kill("qformer"))),
    Fault("redis+vision-killed", both(redis_down, kill("vision"))),
    Fault("redis+qformer-killed", both(redis_down, kill("qformer"))),
    Fault("redis+engine-killed", both(redis_down, kill("engine")), ends_answers=True),
    Fault("vision-killed+clients-leave", kill("vision"), leaving=True),
    Fault("redis-full+qformer-killed", both(redis_full, kill("qformer"))),
)
FAULTS = {fault.name: fault for fault in (*SINGLE, *PAIRS)}
