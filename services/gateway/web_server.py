"""uvicorn beside other servers: on our loop, without its own signal handling, on a socket that we opened."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from services.gateway.http_connection import Bounds, Connection

# Longer than the idle timeout of the usual proxies, so that it is never us who closes a connection under a request.
KEEP_ALIVE_SECONDS = 75


class _Server(uvicorn.Server):
    """Signals belong to the process; `listening` is set when requests are accepted."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(app: ASGIApp, host: str, port: int, bounds: Bounds | None = None) -> AsyncIterator[int]:
    """Serves `app` until left; the port it listens on. Raises OSError when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=2048)
    connection: Any = partial(Connection, bounds=bounds or Bounds())
    config = uvicorn.Config(
        app,
        http=connection,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    await server.listening.wait()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
