"""The LLaMA stage as one object: checkpoint, engine, bus and adapter, on an event loop in a thread of its own.

Its methods may be called from any thread; Triton's is not an asyncio program.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from typing import Any

from tokenizers import Tokenizer

from services.llama.adapter import Adapter, Reply
from services.llama.adapter_folder import AdapterFolder
from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Engine, Prompt
from services.llama.engines import start_engine
from services.llama.gauges import Gauges
from services.llama.request import Inputs
from services.llama.settings import Settings
from services.llama.visual import largest_tokens
from ziya import tracing
from ziya.bus import Announcements, Bus
from ziya.checkpoint import read_config
from ziya.errors import Unavailable
from ziya.redis_arrival import RedisArrival
from ziya.tls import Identity

log = logging.getLogger(__name__)


class Host:
    """Ready when the constructor returns: the weights are loaded, the model has run once, and Redis has answered.

    Redis is waited for no longer than the settings say, and the weights load meanwhile. Triton opens its ports then.
    `family` is Triton's MetricFamily class. Raises CheckpointError or TlsError for what cannot be used.
    """

    def __init__(self, settings: Settings, family: Any) -> None:
        self._settings = settings
        tracing.start(settings)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llama-loop", daemon=True)
        self._thread.start()
        # Triton shows the certificate that is there now for as long as it lives.
        ends = Identity.read(settings.tls_dir).expires if settings.tls_dir is not None else None
        self._adapter = asyncio.run_coroutine_threadsafe(self._start(Gauges(family, ends)), self._loop).result()

    def take(self, inputs: Inputs, reply: Reply) -> None:
        try:
            self._loop.call_soon_threadsafe(self._adapter.take, inputs, reply)
        except RuntimeError:  # the loop is closed
            reply.fail(Unavailable("the language model is shutting down"))

    def close(self) -> None:
        """Drains, then ends every thread."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        tracing.stop()

    async def _start(self, gauges: Gauges) -> Adapter:
        settings = self._settings
        config = read_config(settings.checkpoint)
        self._bus = Bus.of(settings)
        arriving = asyncio.create_task(RedisArrival.of(self._bus, settings).wait())
        engine = await start_engine(settings)
        tokenizer = Tokenizer.from_file(str(settings.checkpoint / "llama" / "tokenizer.json"))
        await _warm_up(engine)
        log.info("the language model is loaded")
        await arriving
        self._announcements = Announcements(self._bus, largest_tokens(config))
        await self._announcements.start()
        adapter = Adapter(engine, self._announcements, tokenizer, config, settings)
        self._tasks = [asyncio.create_task(adapter.watch()), asyncio.create_task(adapter.report(gauges))]
        if settings.llama_adapters_dir is not None:
            folder = AdapterFolder(engine, settings.llama_adapters_dir)
            await folder.look()
            self._tasks.append(asyncio.create_task(folder.watch(settings.llama_adapters_interval)))
        return adapter

    async def _close(self) -> None:
        await self._adapter.close()
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self._announcements.close()
        await self._bus.close()


async def _warm_up(engine: Engine) -> None:
    """The first step is slow (threads start, memory is touched): nobody should wait for it."""
    async for _ in engine.submit(Prompt(((0,),)), Sampling(max_tokens=2, ignore_eos=True)):
        pass
