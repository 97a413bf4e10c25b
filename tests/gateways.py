"""A real gateway before fake stages, for the tests of both its faces."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
from PIL import Image

from services.gateway.app import Gateway, running
from services.gateway.settings import Settings
from tests.fake_triton import FakeTriton, TritonServer
from tests.fakes import CONFIG, FakeQFormer, FakeVision, qformer_service, vision_service
from ziya import rpc_server
from ziya.bus import Announcements, Bus
from ziya.content import ContentKeys

WORDS = "你好，this is a fake answer。"
"""What the fake model says after the sights of its images."""


@dataclass
class Backend:
    """All that is behind a gateway."""

    bus: Bus
    vision: FakeVision
    qformer: FakeQFormer
    triton: FakeTriton
    triton_server: TritonServer
    vision_server: rpc_server.GrpcServer
    vision_port: int
    qformer_server: rpc_server.GrpcServer
    qformer_port: int


@asynccontextmanager
async def backend(redis_url: str, content: ContentKeys) -> AsyncIterator[Backend]:
    """Starts the fakes on free ports."""
    bus = Bus(redis_url)
    announcements = Announcements(bus)
    await announcements.start()
    vision, qformer, triton = FakeVision(bus, content), FakeQFormer(), FakeTriton(announcements)
    vision_server, qformer_server = vision_service(vision), qformer_service(qformer)
    triton_server = TritonServer(triton)
    await triton_server.start()
    try:
        yield Backend(
            bus=bus,
            vision=vision,
            qformer=qformer,
            triton=triton,
            triton_server=triton_server,
            vision_server=vision_server,
            vision_port=await vision_server.start(),
            qformer_server=qformer_server,
            qformer_port=await qformer_server.start(),
        )
    finally:
        for server in (vision_server, qformer_server):
            await server.stop()
        await triton_server.kill()
        await announcements.close()
        await bus.close()


@dataclass
class Scene:
    """A gateway, what is behind it, and clients before it."""

    gateway: Gateway
    behind: Backend
    client: openai.AsyncOpenAI
    http: httpx.AsyncClient

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.http_port}"

    async def ask(self, content: Any, **options: Any) -> Any:
        """One question, by the official client."""
        return await self.client.chat.completions.create(
            model=options.pop("model", "ziya-visual"), messages=[{"role": "user", "content": content}], **options
        )

    async def metric(self, name: str) -> float:
        """The sum of a metric's samples of that name."""
        lines = (await self.http.get("/metrics")).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


@asynccontextmanager
async def scene(redis_url: str, folder: Path, **settings: Any) -> AsyncIterator[Scene]:
    """Starts the fakes and the gateway on free ports. `settings` are the gateway's, without `gateway_`."""
    (folder / "config.json").write_text(CONFIG.to_json(), "utf-8")
    async with backend(redis_url, ContentKeys(CONFIG)) as behind:
        ours: dict[str, Any] = {
            "checkpoint": folder,
            "redis_url": redis_url,
            "drain_seconds": 2.0,
            "gateway_http_port": 0,
            "gateway_grpc_port": 0,
            "gateway_vision": f"127.0.0.1:{behind.vision_port}",
            "gateway_qformer": f"127.0.0.1:{behind.qformer_port}",
            "gateway_triton": f"127.0.0.1:{behind.triton_server.port}",
            "gateway_probe_seconds": 0.05,
            "gateway_page": False,
        }
        async with running(Settings(**(ours | settings))) as gateway:
            url = f"http://127.0.0.1:{gateway.http_port}"
            async with (
                openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30) as client,
                httpx.AsyncClient(base_url=url, timeout=30) as http,
            ):
                yield Scene(gateway, behind, client, http)


def picture(color: str = "red", size: int = 16, form: str = "PNG") -> bytes:
    """An image file of one color."""
    stream = io.BytesIO()
    Image.new("RGB", (size, size), color).save(stream, form)
    return stream.getvalue()


def shown(image: bytes, text: str = "What is this?") -> list[dict[str, Any]]:
    url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]


async def content_of(question: Awaitable[Any]) -> str:
    return str((await question).choices[0].message.content)


async def words_of(question: Awaitable[Any]) -> str:
    answer = await question
    return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Asks until it is so; the test's own timeout ends a wait in vain."""
    while not await condition():
        await asyncio.sleep(0.02)


async def is_ready(here: Scene) -> bool:
    return (await here.http.get("/readyz")).is_success


async def metric_is(here: Scene, name: str, value: float) -> bool:
    return await here.metric(name) == value


async def metric_counts(here: Scene, name: str) -> bool:
    return await here.metric(name) > 0
