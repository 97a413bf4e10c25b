"""A way to Redis that can be made slow: it passes bytes on between two Unix sockets, after a delay.

It runs on an event loop in a thread of its own, so that the load's own pauses do not delay anybody.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from pathlib import Path

BLOCK = 1 << 16


class Proxy:
    """Listens at `folder`/proxy.sock and leads to `upstream`. `delay`: seconds that each answer is held back."""

    def __init__(self, folder: Path, upstream: Path) -> None:
        self.path = folder / "proxy.sock"
        self.url = f"unix://{self.path}"
        self.delay = 0.0
        self._upstream = upstream
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._connections: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Returns when it listens."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def close(self) -> None:
        """Ends every connection and the thread."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._connected, str(self.path), limit=BLOCK)

    async def _stop(self) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            away = await asyncio.open_unix_connection(str(self._upstream))
        except OSError:
            writer.close()  # Redis is down: so is the way to it
            self._connections.discard(task)
            return
        there = asyncio.create_task(self._pass(reader, away[1], delayed=False))
        back = asyncio.create_task(self._pass(away[0], writer, delayed=True))
        try:
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (there, back):
                one.cancel()
            for end in (writer, away[1]):
                end.close()
            await asyncio.gather(there, back, return_exceptions=True)
            self._connections.discard(task)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, delayed: bool) -> None:
        with suppress(OSError):
            while block := await source.read(BLOCK):
                if delayed and self.delay:
                    await asyncio.sleep(self.delay)
                sink.write(block)
                await sink.drain()
