"""The two ways of visual tokens to the language model: by the bus, and inline when Redis is down.

By the bus the tokens never pass through here: Triton gets their keys and waits for them, while the missing
ones are being made. Whatever fails first ends the attempt, and nothing of it is left running.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

from services.gateway.breaker import Breaker
from services.gateway.encoders import Encoded, Encoders, Visual
from services.gateway.job import Job
from services.gateway.llama import InlineTokens, LlamaClient, LlamaStream, Piece, Prompt
from services.gateway.together import cancel, together
from ziya import tracing
from ziya.bus import Bus
from ziya.checkpoint import CheckpointConfig
from ziya.errors import BusUnavailable, VisualTokensMissing
from ziya.keys import left_key


class Paths:
    """Makes one attempt at the first piece of an answer.

    `tokens_ttl`: seconds that tokens found in Redis live on. `watch`: seconds without text after which it is
    checked that the tokens which Triton waits for are really there.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        bus: Bus,
        breaker: Breaker,
        encoders: Encoders,
        llama: LlamaClient,
        *,
        tokens_ttl: float,
        watch: float,
    ) -> None:
        self._config = config
        self._bus, self._breaker = bus, breaker
        self._encoders, self._llama = encoders, llama
        self._tokens_ttl, self._watch = tokens_ttl, watch
        self._telling: set[asyncio.Task[None]] = set()

    async def attempt(self, job: Job) -> tuple[LlamaStream, Piece]:
        """An open stream and its first piece. Raises BusUnavailable or VisualTokensMissing where the inline
        path would help, else what the failing stage raised."""
        if job.visuals and not job.inline:
            return await self._by_bus(job)
        images = await self._inline_tokens(job) if job.visuals else ()
        async with AsyncExitStack() as stack:
            stream = self._open(job, images, stack)
            piece = await stream.read()
            stack.pop_all()
        return stream, piece

    def leave(self, job: Job) -> None:
        """The job has ended: what still works for it, and for nobody else, hears of it over the bus.

        What was queued is taken back. The language model could hear it from Triton, but would have to ask often.
        """
        works = [work_id for work_id in job.works if self._encoders.release(work_id)]
        if works and not job.texts_came:
            self._tell(self._bus.withdraw(works))
        if job.stream is not None and not job.stream.over:
            self._tell(self._bus.announce(left_key(job.ask.request_id, job.ask.deadline)))

    async def discard(self, job: Job) -> None:
        """Throws away what lies on the bus for the job's images: something of it fails its checks."""
        keys = [key for visual in job.visuals for key in (visual.features_key, visual.tokens_key)]
        with suppress(BusUnavailable):  # then nobody reads it either
            await self._bus.drop(keys)

    def _tell(self, telling: Coroutine[Any, Any, None]) -> None:
        if self._breaker.closed:
            task = asyncio.create_task(_quietly(telling))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
        else:
            telling.close()

    async def _by_bus(self, job: Job) -> tuple[LlamaStream, Piece]:
        wanted = job.unique()
        async with AsyncExitStack() as stack:
            stream = self._open(job, [visual.tokens_key for visual in job.visuals], stack)
            there = await self._touch(list(wanted))
            missing = [visual for visual, found in zip(wanted.values(), there, strict=True) if not found]
            # Encode's reply may come after the answer: what is asked for counts as computed until it says otherwise.
            job.computed.update(visual.tokens_key for visual in missing)
            job.encodes = [asyncio.create_task(self._encode(job, visual)) for visual in missing]
            stack.push_async_callback(cancel, job.encodes)
            piece = await self._first_piece(job, stream)
            stack.pop_all()
        return stream, piece

    def _open(self, job: Job, images: Sequence[str] | InlineTokens, stack: AsyncExitStack) -> LlamaStream:
        ask, span = job.ask, tracing.span("triton.infer", {"ziya.inline": job.inline}, kind=tracing.Kind.CLIENT)
        prompt = Prompt(job.texts, images, ask.to_wire(span.traceparent))
        stream = self._llama.open(prompt, deadline=ask.deadline, request_id=ask.request_id, span=span)
        stack.push_async_callback(stream.close)
        job.stream = stream
        return stream

    async def _first_piece(self, job: Job, stream: LlamaStream) -> Piece:
        """Waits for Triton and for Encode side by side: a failing Encode must not be waited out."""
        first = asyncio.create_task(stream.read())
        try:
            while not first.done():
                waiting = {first, *(task for task in job.encodes if not task.done())}
                done, _ = await asyncio.wait(waiting, timeout=self._watch, return_when=asyncio.FIRST_COMPLETED)
                for task in job.encodes:
                    if task in done and not _succeeded(first):
                        task.result()
                if not done and len(waiting) == 1:
                    await self._check_tokens(job)
            return first.result()
        finally:
            await cancel([first])

    async def _check_tokens(self, job: Job) -> None:
        """A busy model makes everybody wait, and that is well; tokens that nobody makes are not waited for."""
        if not all(await self._touch(list(job.unique()))):
            raise VisualTokensMissing(f"the visual tokens did not come within {self._watch:g} seconds")

    async def _touch(self, keys: list[str]) -> list[bool]:
        if not self._breaker.closed:
            raise BusUnavailable("Redis did not answer a moment ago")
        began = time.monotonic()
        try:
            there = await self._bus.touch(keys, self._tokens_ttl)
        except BusUnavailable:
            self._breaker.trip()
            raise
        self._breaker.answered(began)
        return there

    async def _inline_tokens(self, job: Job) -> InlineTokens:
        wanted = job.unique()
        made = await together([self._encoders.inline(visual, job.ask.deadline) for visual in wanted.values()])
        tokens: dict[str, Encoded[bytes]] = dict(zip(wanted, made, strict=True))
        for key, encoded in tokens.items():
            job.note(key, encoded)
        data = b"".join(tokens[visual.tokens_key].value for visual in job.visuals)
        return InlineTokens((len(job.visuals), self._config.queries, self._config.qformer_width), data)

    async def _encode(self, job: Job, visual: Visual) -> None:
        job.note(visual.tokens_key, await self._encoders.encode(visual, job.ask.deadline))


async def _quietly(telling: Coroutine[Any, Any, None]) -> None:
    with suppress(BusUnavailable):  # work is done in vain, and its result is there for the next one
        await telling


def _succeeded(task: asyncio.Task[Piece]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
