"""A program is ready when Redis has answered once or its patience is over; alive without it, and ready for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from services.qformer import app as qformer_app
from services.vision import app as vision_app
from tests.gateways import WORDS, content_of, is_ready, scene, until
from tests.redis_server import RedisServer
from tests.rpc_service import health
from tests.triton_server import MODEL, TritonServer
from ziya import rpc, rpc_server
from ziya.bus import Bus
from ziya.redis_arrival import RedisArrival

SERVING, NOT_SERVING = 1, 2
PATIENT = 600.0
CHAT = "ziya.visual.v1.VisualChat"
ENCODERS = {
    "vision": (vision_app.Settings, vision_app.VisionService, vision_app.FULL_NAME),
    "qformer": (qformer_app.Settings, qformer_app.QFormerService, qformer_app.FULL_NAME),
}


@pytest.fixture
def later(short_folder: Path) -> Iterator[RedisServer]:
    """A Redis that nobody has started yet."""
    server = RedisServer(short_folder)
    yield server
    server.kill()


async def test_the_waiting_ends_with_redis_or_with_the_patience(later: RedisServer) -> None:
    bus = Bus(later.url)
    assert RedisArrival(bus, 0).over
    short, long = RedisArrival(bus, 0.3), RedisArrival(bus, PATIENT)
    waiting = asyncio.create_task(long.wait())
    assert not short.over
    await short.wait()
    assert (short.over, long.over) == (True, False)
    later.start()
    await waiting
    assert long.over
    await bus.close()


@dataclass
class Encoder:
    """Vision or the Q-Former in this process, on its way to become ready."""

    service: Any
    full_name: str
    server: rpc_server.GrpcServer
    channel: grpc.aio.Channel

    async def named(self) -> int:
        """The health of its service."""
        assert await health(self.channel) == SERVING  # of the process, at any time
        return await health(self.channel, self.full_name)

    async def has_run(self) -> bool:
        """Its model has."""
        name = f"ziya_{self.service.metrics.service}_batch_size_count"
        return bool(self.service.metrics.registry.get_sample_value(name))

    async def is_ready(self) -> bool:
        """By its health, and for those who cannot ask it."""
        return await self.named() == SERVING and self.server.is_ready()


@asynccontextmanager
async def encoder(name: str, checkpoint: Path, redis_url: str, patience: float) -> AsyncIterator[Encoder]:
    settings, make, full_name = ENCODERS[name]
    service = make(settings(checkpoint=checkpoint, redis_url=redis_url, redis_start_seconds=patience))  # type: ignore[operator]
    server = rpc_server.GrpcServer(
        name,
        service.register,
        [full_name],
        options=rpc_server.ServerOptions(),
        metrics=service.metrics,
        ready=service.ready,
    )
    port = await server.open()
    becoming = asyncio.create_task(server.become_ready())
    try:
        async with rpc.connect(f"127.0.0.1:{port}") as channel:
            yield Encoder(service, full_name, server, channel)
    finally:
        becoming.cancel()
        with suppress(asyncio.CancelledError):
            await becoming
        await server.stop()
        await service.close()


@pytest.mark.parametrize("name", ENCODERS)
async def test_an_encoder_waits_for_redis_and_stays_ready_without(
    name: str, tiny_checkpoint: Path, later: RedisServer
) -> None:
    async with encoder(name, tiny_checkpoint, later.url, PATIENT) as one:
        await until(one.has_run)
        assert await one.named() == NOT_SERVING
        assert not one.server.is_ready()
        later.start()
        await until(one.is_ready)
        later.kill()
        assert await one.named() == SERVING


@pytest.mark.parametrize("name", ENCODERS)
async def test_an_encoder_without_patience_is_ready_without_redis(
    name: str, tiny_checkpoint: Path, later: RedisServer
) -> None:
    async with encoder(name, tiny_checkpoint, later.url, 0) as one:
        await until(one.is_ready)
        assert await one.has_run()


async def test_a_gateway_waits_for_redis_and_answers_meanwhile(later: RedisServer, tmp_path: Path) -> None:
    async with (
        scene(later.url, tmp_path, redis_start_seconds=PATIENT) as here,
        grpc.aio.insecure_channel(f"127.0.0.1:{here.gateway.grpc_port}") as channel,
    ):
        answer = await here.http.get("/readyz")
        assert (answer.status_code, answer.json()["ready"]) == (503, False)
        stages = answer.json()["stages"]
        assert "Redis" in stages.pop("redis")
        assert set(stages.values()) == {"ok"}
        assert (await here.http.get("/healthz")).is_success
        assert await health(channel) == SERVING
        assert await health(channel, CHAT) == NOT_SERVING
        assert await content_of(here.ask("hello")) == WORDS
        later.start()
        await until(lambda: is_ready(here))
        later.kill()
        answer = await here.http.get("/readyz")
        assert (answer.status_code, answer.json()["ready"]) == (200, True)
        assert "Redis" in answer.json()["stages"]["redis"]
        assert await health(channel, CHAT) == SERVING


async def test_a_gateway_without_patience_is_ready_without_redis(later: RedisServer, tmp_path: Path) -> None:
    async with scene(later.url, tmp_path, redis_start_seconds=0) as here:
        assert await is_ready(here)


async def test_the_language_model_waits_for_redis_and_stays_ready_without(
    later: RedisServer, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Triton opens its ports when its model is there: alive, too, is only asked from then on."""
    server = TritonServer(tmp_path, tiny_checkpoint, later.url, ZIYA_REDIS_START_SECONDS=str(PATIENT))
    try:
        await until(lambda: _is_loaded(server))
        assert not await _says(server, f"/v2/models/{MODEL}/ready")
        later.start()
        server.wait()
        later.kill()
        assert await _says(server, f"/v2/models/{MODEL}/ready")
    finally:
        server.stop()


async def _is_loaded(server: TritonServer) -> bool:
    assert server.process.poll() is None
    return "the language model is loaded" in server.log.read_text("utf-8")


async def _says(server: TritonServer, path: str) -> bool:
    async with httpx.AsyncClient(base_url=server.http) as client:
        try:
            return (await client.get(path)).is_success
        except httpx.TransportError:
            return False
