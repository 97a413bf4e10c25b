"""Everything that listens, on a thread with an event loop of its own: the gateway, vision and qformer, really."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.encoders import running_qformer, running_vision
from tests.gateways import scene

# Small, so that hostile pictures are cheap to make and to refuse.
LIMITS = {"vision_max_image_bytes": 1 << 20, "vision_max_image_pixels": 1 << 20}


@dataclass(frozen=True)
class Edges:
    """Ports of the gateway, and addresses of the encoders."""

    http_port: int
    grpc: str
    vision: str
    qformer: str


@contextmanager
def listening(redis_url: str, folder: Path, checkpoint: Path) -> Iterator[Edges]:
    """Serves until left. `folder` is the gateway's own; the encoders read `checkpoint`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="edges")
    thread.start()
    stack = AsyncExitStack()

    async def start() -> Edges:
        here = await stack.enter_async_context(scene(redis_url, folder))
        vision = await stack.enter_async_context(running_vision(checkpoint, redis_url, **LIMITS))
        qformer = await stack.enter_async_context(running_qformer(checkpoint, redis_url))
        return Edges(here.gateway.http_port, f"127.0.0.1:{here.gateway.grpc_port}", vision.address, qformer.address)

    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
