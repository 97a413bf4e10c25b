"""The Q-Former's end of the bus: references in, tokens stored, announced, and only then acknowledged.

    read a batch -> fetch features (one round trip) -> Q-Former -> store, announce, acknowledge (one round trip)

Two batches may be under way, so that the next features arrive while the model runs. A batch that fails
half-way is still pending in Redis and is done again, here or by a peer; since keys are content hashes
that changes nothing. Each piece of work ends alone: what is expired, lost or poisoned is announced as
its own error, and the rest of its batch goes on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
from collections.abc import Sequence
from contextlib import aclosing, suppress
from functools import partial

from services.qformer.questions import Array
from services.qformer.tokens import TokenSource
from ziya import tracing
from ziya.batching import Timed
from ziya.bus import Bus, Delivery, Work
from ziya.content import ContentKeys
from ziya.errors import (
    BusUnavailable,
    DeadlineExceeded,
    Internal,
    Unavailable,
    VisualTokensMissing,
    VisualTokensSpoilt,
    ZiyaError,
)
from ziya.single_flight import SingleFlight
from ziya.telemetry import Metrics, request_id, traceparent

GROUP = "qformer"
BATCHES_UNDER_WAY = 2
WATCH_SECONDS = 1.0
RESTART_SECONDS = 1.0
log = logging.getLogger(__name__)


class Worker:
    """Consumes until `close`, `count` references at once; `claim_idle` and the tokens' `ttl` are in seconds."""

    def __init__(
        self,
        bus: Bus,
        source: TokenSource,
        keys: ContentKeys,
        *,
        count: int,
        claim_idle: float,
        ttl: float,
        metrics: Metrics,
    ) -> None:
        self._bus, self._source, self._keys = bus, source, keys
        self._count, self._claim_idle, self._ttl = count, claim_idle, ttl
        self._consumer = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._flights: SingleFlight[Timed[bytes]] = SingleFlight()
        self._under_way: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._backlog = metrics.gauge("bus_backlog", "References on the bus that nobody has finished")
        self._works = metrics.counter("works", "References taken from the bus, by how they ended", ["outcome"])
        self._lag = metrics.histogram("bus_lag_seconds", "Seconds from a reference's publishing to its reading")

    def start(self) -> None:
        """Begins to consume, whether Redis is there yet or not."""
        self._reader = asyncio.create_task(self._consume())
        self._watcher = asyncio.create_task(self._watch())

    async def close(self, grace: float) -> None:
        """Reads no more, and gives what is under way at most `grace` seconds."""
        for task in filter(None, (self._reader, self._watcher)):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _consume(self) -> None:
        while True:
            try:
                await self._read()
            except Exception:  # a worker loop: this process is of no use without it
                log.exception("reading from the bus failed; it begins again")
                await asyncio.sleep(RESTART_SECONDS)

    async def _read(self) -> None:
        deliveries = self._bus.consume(GROUP, self._consumer, count=self._count, claim_idle=self._claim_idle)
        async with aclosing(deliveries) as batches:
            async for batch in batches:
                task = asyncio.create_task(self._handle(batch))
                self._under_way.add(task)
                task.add_done_callback(self._done)
                # What has been read is under way: nothing lies here unseen when the process is stopped.
                while len(self._under_way) >= BATCHES_UNDER_WAY:
                    await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()):
            # The batch stays pending, and is claimed again after a while.
            level = logging.WARNING if isinstance(error, BusUnavailable) else logging.ERROR
            log.log(level, "a batch was left unfinished: %s", error, exc_info=None if level < logging.ERROR else error)

    async def _handle(self, batch: Sequence[Delivery]) -> None:
        try:
            with self._source.announced():
                await self._work_on(batch)
        finally:
            self._bus.release(batch)

    async def _work_on(self, batch: Sequence[Delivery]) -> None:
        received = time.perf_counter()
        works = [delivery.work for delivery in batch]
        alive = [work for work in works if work.deadline > time.time()]
        wanted = list({key: None for work in alive for key in (work.features_key, work.tokens_key)})
        values, kept = await asyncio.gather(self._bus.get_many(wanted), self._bus.wanted(batch))
        withdrawn = [delivery for delivery, here in zip(batch, kept, strict=True) if not here]
        batch = [delivery for delivery, here in zip(batch, kept, strict=True) if here]
        self._works.labels("withdrawn").inc(len(withdrawn))
        found = {key: data for key, data in zip(wanted, values, strict=True) if data}
        envelopes = {work.features_key: found[work.features_key] for work in alive if work.features_key in found}
        features = dict(zip(envelopes, await self._source.open(list(envelopes.values())), strict=True))
        times = received, time.perf_counter()
        settling = (
            self._settle(d, features.get(d.work.features_key), found.get(d.work.tokens_key), times) for d in batch
        )
        settled = await asyncio.gather(*settling)
        finishing = time.perf_counter()
        done = [(each, result) for each, (result, _) in zip(batch, settled, strict=True)]
        await self._bus.finish([*done, *((each, None) for each in withdrawn)], self._ttl)
        for _, around in settled:
            tracing.record("bus.finish", finishing, time.perf_counter(), parent=around)

    async def _settle(
        self,
        delivery: Delivery,
        features: Array | ZiyaError | None,
        tokens: bytes | None,
        times: tuple[float, float],
    ) -> tuple[bytes | ZiyaError, str]:
        """The tokens of one piece of work, or the error to announce; and the span. `times`: read, and looked up."""
        work, (received, fetched) = delivery.work, times
        request_id.set(work.request_id)
        traceparent.set(tracing.accept(work.traceparent))
        published = min(received, tracing.reading(delivery.published))
        self._lag.observe(received - published)
        tracing.record("bus.wait", published, received, {"ziya.deliveries": delivery.deliveries})
        result: bytes | ZiyaError
        with tracing.span("qformer.work", kind=tracing.Kind.CONSUMER, since=received) as span:
            tracing.record("qformer.fetch", received, fetched)
            try:
                outcome, result = ("cached", tokens) if tokens else ("done", await self._tokens(work, features))
            except ZiyaError as error:
                log.warning("a reference failed: %s", error, extra={"error": type(error).__name__})
                outcome, result = type(error).__name__, error
            except Exception:  # a worker loop: one poisoned item must not end it
                log.exception("a reference failed for an unexpected reason")
                outcome, result = "Internal", Internal("the Q-Former failed on this image; its log tells why")
            if isinstance(result, ZiyaError):
                span.fail(result)
        self._works.labels(outcome).inc()
        return result, span.traceparent

    async def _tokens(self, work: Work, features: Array | ZiyaError | None) -> bytes:
        if work.deadline <= time.time():
            raise DeadlineExceeded("the request's time ended before the Q-Former came to it")
        if self._keys.tokens(work.features_key, work.instruction) != work.tokens_key:
            raise Unavailable("this Q-Former has other weights than the sender believes (a rollout is under way)")
        if features is None:
            raise VisualTokensMissing("the image's features are not (any more) on the bus")
        if isinstance(features, ZiyaError):
            # What lies on the bus is not the client's doing: with the image the features can be made again.
            raise VisualTokensSpoilt(f"the image's features on the bus cannot be used: {features.message}")
        computing = partial(self._source.tokens, features, work.instruction, work.deadline)
        return (await self._flights.do(work.tokens_key, computing))[0].value

    async def _watch(self) -> None:
        while True:
            with suppress(BusUnavailable):
                self._backlog.set(await self._bus.backlog())
            await asyncio.sleep(WATCH_SECONDS)
