"""From one request of Triton's to one answer: parse, wait for visual tokens, run, send each piece, end.

Everything here runs on one event loop; `host.py` gives it a thread and Triton's callbacks. However a request ends,
its reply is ended exactly once, since Triton keeps a client waiting for ever otherwise. That a client
went away the gateway announces on the bus. Triton tells it only when asked, for one request at a time, and each
question crosses to its process: one watcher asks, often only for those whose leaving nobody would announce.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Protocol

from tokenizers import Tokenizer

from services.llama.engine.seam import Delta, Engine, Prompt, Stream, Usage
from services.llama.gauges import Gauges
from services.llama.logprob_words import LogprobWords
from services.llama.request import Inputs, Request, parse
from services.llama.settings import Settings
from services.llama.visual import VisualTokens
from ziya import tracing
from ziya.announcements import Announcements
from ziya.checkpoint import CheckpointConfig
from ziya.errors import Cancelled, DeadlineExceeded, Internal, Overloaded, Unavailable, VisualTokensSpoilt, ZiyaError
from ziya.keys import left_key
from ziya.prompt import tokenize
from ziya.telemetry import request_id, traceparent

log = logging.getLogger(__name__)
ASKED_AT_ONCE = 64  # with more open requests they are asked less often: each question crosses to Triton's process
ANNOUNCED_SECONDS = 1.0  # between two questions after a request whose asker's leaving would be announced
LONG_TEXT = 20_000  # characters from which tokenising would hold up the loop


class Reply(Protocol):
    """A request's way back; `fail`, and `send` with a finish reason, end it."""

    def send(self, text: str, tokens: int, finish_reason: str, usage: str, logprobs: str) -> None: ...

    def fail(self, error: ZiyaError) -> None: ...

    def cancelled(self) -> bool: ...


class Adapter:
    """Serves requests with an engine. Make it inside the loop that it is to run on."""

    def __init__(
        self,
        engine: Engine,
        announcements: Announcements,
        tokenizer: Tokenizer,
        config: CheckpointConfig,
        settings: Settings,
    ) -> None:
        self._engine, self._tokenizer, self._config, self._settings = engine, tokenizer, config, settings
        self._announcements, self._visual = announcements, VisualTokens(announcements, config)
        self._logprobs = LogprobWords(tokenizer)
        self._capacity = settings.llama_max_running + settings.llama_max_waiting
        self._open: dict[Reply, asyncio.Task[None]] = {}
        self._announced: set[Reply] = set()
        self._waiting_for_images = 0
        self._outside: Counter[str] = Counter()
        self._closing = False

    def take(self, inputs: Inputs, reply: Reply) -> None:
        """Begins to serve a request."""
        if self._closing:
            reply.fail(Unavailable("the language model is shutting down"))
        elif len(self._open) >= self._capacity:
            self._outside["rejected"] += 1
            reply.fail(Overloaded("the language model's queue is full"))
        else:
            task = asyncio.get_running_loop().create_task(self._serve(inputs, reply))
            self._open[reply] = task
            task.add_done_callback(lambda task: self._ended(reply, task))

    def _ended(self, reply: Reply, task: asyncio.Task[None]) -> None:
        del self._open[reply]
        if task.cancelled():  # before its first step, so that nothing of `_serve` ran
            reply.fail(Cancelled("cancelled"))

    async def watch(self) -> None:
        """Cancels what nobody reads any more; runs until it is cancelled."""
        asked_all = time.monotonic()
        while True:
            spared = self._announced if self._announcements.is_read else set[Reply]()
            if time.monotonic() - asked_all > ANNOUNCED_SECONDS:
                spared, asked_all = set(), time.monotonic()
            asked = [(reply, task) for reply, task in self._open.items() if reply not in spared]
            for reply, task in asked:
                if reply.cancelled():
                    task.cancel()
            await asyncio.sleep(self._settings.llama_cancel_interval * max(1.0, len(asked) / ASKED_AT_ONCE))

    async def report(self, gauges: Gauges) -> None:
        """Keeps the metrics up to date; runs until it is cancelled."""
        while True:
            gauges.update(self._engine, self._outside, self._waiting_for_images)
            await asyncio.sleep(self._settings.llama_metrics_interval)

    async def close(self) -> None:
        """Takes nothing new, lets the open requests finish for `drain_seconds`, ends the rest."""
        self._closing = True
        if self._open:
            await asyncio.wait(self._open.values(), timeout=self._settings.drain_seconds)
        for task in self._open.values():
            task.cancel()
        await self._engine.close()
        await asyncio.gather(*self._open.values(), return_exceptions=True)

    async def _serve(self, inputs: Inputs, reply: Reply) -> None:
        try:
            await self._answer(parse(inputs, self._config, self._settings.request_timeout), reply)
        except ZiyaError as error:
            reply.fail(error)
        except asyncio.CancelledError:
            reply.fail(Unavailable("the language model is shutting down") if self._closing else Cancelled("cancelled"))
        except Exception:  # a worker loop: whatever goes wrong, the client must hear of it
            log.exception("a request failed")
            reply.fail(Internal("the request failed; the server's log has the details"))

    async def _answer(self, request: Request, reply: Reply) -> None:
        request_id.set(request.request_id)
        traceparent.set(request.traceparent)
        with (
            tracing.span("llama.request", {"ziya.request_id": request.request_id}, kind=tracing.Kind.SERVER),
            self._leaving(request, reply) if request.request_id else nullcontext(),
        ):
            await self._run(request, reply)

    @contextmanager
    def _leaving(self, request: Request, reply: Reply) -> Iterator[None]:
        """Around an answer that ends when its asker is announced to have left."""
        self._announced.add(reply)
        key, task = left_key(request.request_id, request.deadline), self._open[reply]
        try:
            with self._announcements.listening(key, task.cancel):
                yield
        finally:
            self._announced.discard(reply)

    async def _run(self, request: Request, reply: Reply) -> None:
        began = time.perf_counter()
        await self._engine.prepare(request.sampling)
        prompt = await self._prompt(request)
        waited = time.perf_counter() - began if request.keys else 0.0
        stream = self._engine.submit(prompt, request.sampling, request.deadline)
        try:
            await self._send(stream, reply, waited)
        finally:
            stream.cancel()

    async def _prompt(self, request: Request) -> Prompt:
        """The text is tokenised, and refused when it is too long, before anything is waited for."""
        if sum(map(len, request.texts)) > LONG_TEXT:
            pieces = await asyncio.to_thread(tokenize, self._tokenizer, request.texts)
        else:
            pieces = tokenize(self._tokenizer, request.texts)
        self._engine.check_length(sum(map(len, pieces)), (len(pieces) - 1) * self._config.queries)
        self._waiting_for_images += bool(request.keys)
        try:
            visuals = await self._visual.of(request)
        except VisualTokensSpoilt:
            self._outside["envelopes_refused"] += 1
            raise
        except (DeadlineExceeded, asyncio.CancelledError) as error:
            self._outside.update(["expired" if isinstance(error, DeadlineExceeded) else "cancelled", "saved"])
            raise
        finally:
            self._waiting_for_images -= bool(request.keys)
        return Prompt(tuple(map(tuple, pieces)), visuals, request.salt, request.adapter)

    async def _send(self, stream: Stream, reply: Reply, waited: float) -> None:
        async for delta in stream:
            logprobs = self._logprobs.json(delta.logprobs) if delta.logprobs else ""
            reply.send(delta.text, len(delta.ids), delta.finish_reason, _usage(delta, waited), logprobs)
            if delta.usage is not None:
                _trace(delta.usage)


def _usage(delta: Delta, waited: float) -> str:
    return json.dumps({**asdict(delta.usage), "visual_wait_seconds": waited}) if delta.usage else ""


def _trace(usage: Usage) -> None:
    """What the engine says of a request that has just ended, as spans one after the other."""
    ended = time.perf_counter()
    decoding = ended - usage.decode_seconds
    computing = decoding - usage.prefill_seconds
    counted = {"ziya.prompt_tokens": usage.prompt_tokens, "ziya.cached_tokens": usage.cached_tokens}
    tracing.record("llama.queue", computing - usage.queue_seconds, computing)
    tracing.record("llama.prefill", computing, decoding, counted)
    tracing.record("llama.decode", decoding, ended, {"ziya.completion_tokens": usage.completion_tokens})
