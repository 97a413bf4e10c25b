"""A real gateway before fake stages, for the tests of both its faces."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
from PIL import Image

from services.gateway.app import Gateway, running
from services.gateway.settings import Settings
from tests.fakes import CONFIG, Backend, backend
from ziya.content import ContentKeys


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
