"""VisionEncoder.Encode: an image in; its features stored and the Q-Former told, or the features themselves.

By the bus: are the features there already? then only the reference is queued; else encode, and store and
queue in one round trip. Requests for the same tokens at the same time share all of that, and the
reference carries the latest of their deadlines. Inline: encode and reply; Redis is not touched.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Coroutine
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import grpc.aio

from protos.tensor_pb2 import Tensor
from protos.vision_pb2 import EncodeReply, EncodeRequest
from protos.vision_pb2_grpc import VisionEncoderServicer
from services.vision.features import WORTH_A_THREAD, Encoded, FeatureSource
from ziya import tracing
from ziya.bus import Bus, Work
from ziya.content import ContentKeys
from ziya.errors import BusUnavailable, InvalidRequest, NotFound
from ziya.keys import image_id
from ziya.rpc import deadline_of
from ziya.single_flight import SingleFlight
from ziya.telemetry import request_id, traceparent


@dataclass(frozen=True, slots=True)
class _Ask:
    """A checked request: `image` may be empty; `deadline` is in unix seconds."""

    image: bytes
    image_id: str
    features_key: str
    tokens_key: str
    instruction: str
    deadline: float


class VisionServicer(VisionEncoderServicer):
    """`ttl` is that of features on the bus, `timeout` that of requests without a deadline; both in seconds."""

    def __init__(self, source: FeatureSource, keys: ContentKeys, bus: Bus, *, ttl: float, timeout: float) -> None:
        self._source, self._keys, self._bus, self._ttl, self._timeout = source, keys, bus, ttl, timeout
        self._flights: SingleFlight[Encoded] = SingleFlight()
        self._deadlines: dict[str, list[float]] = defaultdict(list)  # tokens key -> of all who wait for it
        self._withdrawing: set[asyncio.Task[None]] = set()

    async def Encode(self, request: EncodeRequest, context: grpc.aio.ServicerContext[Any, Any]) -> EncodeReply:
        ask = await self._check(request, deadline_of(context, self._timeout))
        # Who joins another's run brings nothing that a batch could wait for.
        is_new = bool(ask.image) and ask.tokens_key not in self._deadlines
        with self._source.announced() if is_new else nullcontext():
            encoded = await (self._encode(ask) if request.inline else self._to_bus(ask))
        if encoded.work_id:
            work_id, call = encoded.work_id, context
            call.add_done_callback(lambda _call: self._answered(call, work_id))  # type: ignore[arg-type]
        return EncodeReply(
            image_id=ask.image_id,
            features_key=ask.features_key,
            tokens_key="" if request.inline else ask.tokens_key,
            features=Tensor(envelope=encoded.envelope) if request.inline else None,
            cached=not encoded.computed,
            queue_seconds=encoded.queue_seconds,
            compute_seconds=encoded.compute_seconds,
            work_id=encoded.work_id,
        )

    async def _check(self, request: EncodeRequest, deadline: float) -> _Ask:
        image, name = request.image, request.image_id.lower()
        if not image and not name:
            raise InvalidRequest("give an image, or the image_id of one that was sent before")
        if image:
            own = image_id(image) if len(image) < WORTH_A_THREAD else await asyncio.to_thread(image_id, image)
            if name not in ("", own):
                raise InvalidRequest("image_id is not the SHA-256 of the image that came with it")
            name = own
        features_key = self._keys.features(name, request.salt)
        tokens_key = self._keys.tokens(features_key, request.instruction)
        return _Ask(image, name, features_key, tokens_key, request.instruction, deadline)

    async def _to_bus(self, ask: _Ask) -> Encoded:
        waiting = self._deadlines[ask.tokens_key]
        waiting.append(ask.deadline)
        try:
            encoded, joined = await self._flights.do(ask.tokens_key, lambda: self._store(ask))
            # Who launched it wakes first, and sees whether anybody else waits.
            encoded = encoded.as_shared() if joined or len(waiting) > 1 else encoded
        finally:
            waiting.remove(ask.deadline)
            if not waiting:
                self._deadlines.pop(ask.tokens_key, None)
        return encoded.as_joined() if joined else encoded

    async def _store(self, ask: _Ask) -> Encoded:
        """Sees to it that the features are on the bus and that the Q-Former has been told."""
        if (await self._bus.touch([ask.features_key], self._ttl))[0]:
            with tracing.span("bus.publish", kind=tracing.Kind.PRODUCER):
                work_id = await self._queued(self._bus.publish(self._work(ask)))
            return self._source.on_bus().as_queued(work_id)
        encoded = await self._encode(ask)
        with tracing.span("bus.publish", {"ziya.bytes": len(encoded.envelope)}, kind=tracing.Kind.PRODUCER):
            storing = self._bus.put_and_publish(ask.features_key, encoded.envelope, self._ttl, self._work(ask))
            work_id = await self._queued(storing)
        return encoded.as_queued(work_id)

    async def _queued(self, publishing: Coroutine[Any, Any, str]) -> str:
        """The id of the work that is being published; when everybody leaves meanwhile, it is taken back."""
        task = asyncio.create_task(publishing)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._published_in_vain)
            raise

    def _published_in_vain(self, publishing: asyncio.Task[str]) -> None:
        if not publishing.cancelled() and publishing.exception() is None:
            self._take_back(publishing.result())

    def _answered(self, call: grpc.aio.ServicerContext[Any, Any], work_id: str) -> None:
        """Who left before the reply could reach it does not know what there is to take back."""
        if call.cancelled():
            self._take_back(work_id)

    def _take_back(self, work_id: str) -> None:
        task = asyncio.get_running_loop().create_task(self._withdraw(work_id))
        self._withdrawing.add(task)
        task.add_done_callback(self._withdrawing.discard)

    async def _withdraw(self, work_id: str) -> None:
        with suppress(BusUnavailable):  # then it is worked on in vain, and its tokens are there for the next one
            await self._bus.withdraw([work_id])

    async def _encode(self, ask: _Ask) -> Encoded:
        if ask.image:
            return await self._source.encode(ask.features_key, ask.image, ask.deadline)
        if remembered := self._source.remembered(ask.features_key):
            return remembered
        raise NotFound("no features of this image_id are cached (any more); send the image again")

    def _work(self, ask: _Ask) -> Work:
        return Work(
            features_key=ask.features_key,
            tokens_key=ask.tokens_key,
            instruction=ask.instruction,
            deadline=max(self._deadlines[ask.tokens_key]),
            request_id=request_id.get(),
            traceparent=traceparent.get(),
        )
