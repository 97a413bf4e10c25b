"""Where an image's features come from, wherever they go next: memory, somebody else's run, or the ViT.

    remembered?  ->  already in flight?  ->  decode and preprocess (pool)  ->  batch (one thread)  ->  envelope

The result is the packed envelope, the same bytes for Redis and for an inline reply. Equal images in
flight are encoded once, and the last few results stay in memory, so that the inline path has a cache too.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ziya import tracing
from ziya.batching import Batcher
from ziya.errors import InvalidImage, Unavailable
from ziya.single_flight import SingleFlight
from ziya.telemetry import Metrics, traceparent
from ziya.wire import Stage, pack

if TYPE_CHECKING:  # torch takes seconds to import, which the port need not wait for
    from services.vision.encoder import Encoder

# Below this many bytes a thread switch costs more than the work.
WORTH_A_THREAD = 1 << 16


@dataclass(frozen=True, slots=True)
class Encoded:
    """A FEATURES envelope, what it took, and whether the ViT ran for this very request.

    `work_id`: the reference that was queued for the Q-Former because of it.
    """

    envelope: bytes
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    computed: bool = False
    work_id: str = ""

    def as_joined(self) -> Encoded:
        """The same, for a request that shared another's run."""
        return replace(self, computed=False)

    def as_shared(self) -> Encoded:
        """The same, where others wait for the Q-Former, too: no single one of them may take the work back."""
        return replace(self, work_id="")

    def as_queued(self, work_id: str) -> Encoded:
        """The same, with the reference that leads the Q-Former to it."""
        return replace(self, work_id=work_id)


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_wait` in seconds; `memory_bytes` is what the envelopes kept in memory may weigh together."""

    max_batch: int
    max_wait: float
    max_queue: int
    decoders: int
    memory_bytes: int


class FeatureSource:
    """Features by key. `load` makes the encoder; it runs in the thread of the batches, during `start`."""

    def __init__(self, load: Callable[[], Encoder], *, fingerprint: str, limits: Limits, metrics: Metrics) -> None:
        self._load, self._fingerprint = load, fingerprint
        self._encoder: Encoder | None = None
        self._pool = ThreadPoolExecutor(limits.decoders, thread_name_prefix="decode")
        self._batcher: Batcher[NDArray[np.float32], NDArray[Any]] = Batcher(
            lambda pixels: self._ready().encode(pixels),
            max_batch=limits.max_batch,
            max_wait=limits.max_wait,
            max_queue=limits.max_queue,
            metrics=metrics,
        )
        self._flights: SingleFlight[Encoded] = SingleFlight()
        self._memory = _Memory(limits.memory_bytes)
        self._sources = metrics.counter("features", "Features asked for, by where they came from", ["source"])
        self._refused = metrics.counter("images_refused", "Images that could not be decoded or were too large")
        self._decode_seconds = metrics.histogram("decode_seconds", "Seconds to decode and preprocess an image")

    async def start(self) -> None:
        """Loads the weights and runs the model once. Raises CheckpointError."""
        self._encoder = await self._batcher.on_thread(self._load)
        await self._batcher.submit(self._encoder.blank())

    async def close(self) -> None:
        await self._batcher.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def announced(self) -> AbstractContextManager[None]:
        """Around a request with an image: a batch of others waits for its being decoded, though not for long."""
        return self._batcher.announced()

    def remembered(self, key: str) -> Encoded | None:
        """The features if they are in memory."""
        envelope = self._memory.get(key)
        if envelope is None:
            return None
        self._sources.labels("memory").inc()
        return Encoded(envelope)

    def on_bus(self) -> Encoded:
        """Stands for features that were found on the bus, and so were not fetched."""
        self._sources.labels("bus").inc()
        return Encoded(b"")

    async def encode(self, key: str, image: bytes, deadline: float) -> Encoded:
        """The features of `image`. `deadline` is in unix seconds.

        Raises InvalidImage, Overloaded, DeadlineExceeded, and Unavailable while the weights are loading.
        """
        if remembered := self.remembered(key):
            return remembered
        encoded, joined = await self._flights.do(key, lambda: self._encode(key, image, deadline))
        self._sources.labels("flight" if joined else "computed").inc()
        return replace(encoded, computed=not joined)

    async def _encode(self, key: str, image: bytes, deadline: float) -> Encoded:
        pixels = await self._prepare(image)
        run = await self._batcher.submit(pixels, deadline=deadline)
        envelope = await self._pack(run.value)
        self._memory.put(key, envelope)
        return Encoded(envelope, run.queue_seconds, run.compute_seconds)

    async def _prepare(self, image: bytes) -> NDArray[np.float32]:
        decoding = tracing.span("vision.decode")
        with decoding, self._decode_seconds.time(), self._refused.count_exceptions(InvalidImage):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, self._ready().prepare, image)

    async def _pack(self, features: NDArray[Any]) -> bytes:
        origin = traceparent.get()

        def work() -> bytes:
            return pack(features, stage=Stage.FEATURES, fingerprint=self._fingerprint, traceparent=origin)

        if features.nbytes < WORTH_A_THREAD:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _ready(self) -> Encoder:
        if self._encoder is None:
            raise Unavailable("the vision service is still loading its weights")
        return self._encoder


class _Memory:
    """The most recently used envelopes, up to a weight in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._entries: OrderedDict[str, bytes] = OrderedDict()

    def get(self, key: str) -> bytes | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: str, envelope: bytes) -> None:
        self._left += len(self._entries.pop(key, b"")) - len(envelope)
        self._entries[key] = envelope
        while self._left < 0 and self._entries:
            self._left += len(self._entries.popitem(last=False)[1])
