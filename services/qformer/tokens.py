"""A features envelope and a question in, a tokens envelope out: the work that bus worker and RPCs share.

    unpack and check  ->  batch (one thread, whoever asks)  ->  pack

Nothing here knows where the bytes came from or go to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.qformer.questions import Array, EmbedImage, EmbedText, Match, Query, Question
from ziya.batching import Batcher, Timed
from ziya.content import ContentKeys
from ziya.errors import InvalidEnvelope, Unavailable, Unimplemented
from ziya.telemetry import Metrics, traceparent
from ziya.wire import Stage, pack, unpack

if TYPE_CHECKING:  # torch takes seconds to import, which the port need not wait for
    from services.qformer.resampler import Resampler

# Below this many bytes a thread switch costs more than the work.
WORTH_A_THREAD = 1 << 16


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the batcher; `max_wait` in seconds."""

    max_batch: int
    max_wait: float
    max_queue: int


class TokenSource:
    """The Q-Former behind envelopes. `load` makes the model; it runs in the thread of the batches, during `start`."""

    def __init__(self, load: Callable[[], Resampler], *, keys: ContentKeys, limits: Limits, metrics: Metrics) -> None:
        self._load, self._keys = load, keys
        self._resampler: Resampler | None = None
        self._refused = metrics.counter("envelopes_refused", "Tensor envelopes that failed a check")
        self._batcher: Batcher[Question, Array] = Batcher(
            lambda questions: self._ready().answer(questions),
            max_batch=limits.max_batch,
            max_wait=limits.max_wait,
            max_queue=limits.max_queue,
            metrics=metrics,
        )

    async def start(self) -> None:
        """Loads the weights and runs the model once. Raises CheckpointError."""
        self._resampler = await self._batcher.on_thread(self._load)
        await self._batcher.submit(self._resampler.blank())

    async def close(self) -> None:
        await self._batcher.close()

    def announced(self) -> AbstractContextManager[None]:
        """Around work whose features are being fetched: a batch of others waits for it, though not for long."""
        return self._batcher.announced()

    async def open(self, envelopes: Sequence[bytes]) -> list[Array | InvalidEnvelope]:
        """The checked features [N, V] in each FEATURES envelope, or what is wrong with it."""

        def work() -> list[Array | InvalidEnvelope]:
            return [self._open(envelope) for envelope in envelopes]

        # All in one go, so that they reach the batcher together.
        return work() if sum(map(len, envelopes)) < WORTH_A_THREAD else await asyncio.to_thread(work)

    async def tokens(self, features: Array, instruction: str, deadline: float) -> Timed[bytes]:
        """The TOKENS envelope of features. `deadline` is in unix seconds.

        Raises Overloaded, DeadlineExceeded, and Unavailable while the weights are loading; so do all below.
        """
        ids = self._keys.instruction_ids(instruction)
        run = await self._ask(Query(features, None if ids is None else tuple(ids)), deadline)
        return Timed(self._pack(run.value), run.queue_seconds, run.compute_seconds)

    async def embed_image(self, features: Array, deadline: float) -> bytes:
        """Envelope of float32 unit vectors [queries, width]. Raises Unimplemented without retrieval heads."""
        self._need_retrieval()
        return self._pack((await self._ask(EmbedImage(features), deadline)).value)

    async def embed_text(self, text: str, deadline: float) -> bytes:
        """Envelope of one float32 unit vector [1, width]. Raises Unimplemented without retrieval heads."""
        self._need_retrieval()
        return self._pack((await self._ask(EmbedText(self._ready().text_ids(text)), deadline)).value)

    async def match(self, features: Array, text: str, deadline: float) -> tuple[float, float]:
        """Match probability and largest cosine. Raises Unimplemented without retrieval heads."""
        self._need_retrieval()
        probability, cosine = (await self._ask(Match(features, self._ready().text_ids(text)), deadline)).value
        return float(probability), float(cosine)

    async def _ask(self, question: Question, deadline: float) -> Timed[Array]:
        self._ready()
        return await self._batcher.submit(question, deadline=deadline)

    def _open(self, envelope: bytes) -> Array | InvalidEnvelope:
        shape = (None, self._keys.config.vision_width)
        try:
            return unpack(envelope, stage=Stage.FEATURES, fingerprint=self._keys.vision_fingerprint, shape=shape).array
        except InvalidEnvelope as error:
            self._refused.inc()
            return error

    def _pack(self, answer: Array) -> bytes:
        fingerprint = self._keys.qformer_fingerprint
        return pack(answer, stage=Stage.TOKENS, fingerprint=fingerprint, traceparent=traceparent.get())

    def _need_retrieval(self) -> None:
        if not self._keys.config.retrieval:
            raise Unimplemented("this checkpoint has no retrieval heads (ITC and ITM)")

    def _ready(self) -> Resampler:
        if self._resampler is None:
            raise Unavailable("the Q-Former service is still loading its weights")
        return self._resampler
