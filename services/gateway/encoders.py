"""The two encoder services as the gateway uses them.

By the bus: `Encode` only, for tokens that nobody has; the Q-Former gets its work from Redis. Inline (Redis
is down): `Encode` returns the features, `Query` turns them into tokens, and both travel in the messages.
Requests for the same key at the same time share one call.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Generic, TypeVar

import grpc

from protos.qformer_pb2 import Features, QueryRequest
from protos.qformer_pb2_grpc import QFormerStub
from protos.vision_pb2 import EncodeReply, EncodeRequest
from protos.vision_pb2_grpc import VisionEncoderStub
from services.gateway.images.image_source import Picture
from ziya import rpc, tracing, wire
from ziya.checkpoint import CheckpointConfig
from ziya.errors import BusUnavailable, NotFound
from ziya.single_flight import SingleFlight

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Visual:
    """An image of a request, the question that it is shown with, and the keys its features and tokens have."""

    picture: Picture
    instruction: str
    features_key: str
    tokens_key: str
    salt: str


@dataclass(frozen=True, slots=True)
class Encoded(Generic[ResultT]):
    """What an encoder gave. `shared`: another request's call was used, nothing was computed for this one.

    `work_id`: the reference queued for the Q-Former, to be given to `Encoders.release`.
    """

    value: ResultT
    shared: bool
    stage_seconds: dict[str, float]
    work_id: str = ""


class Encoders:
    """Calls VisionEncoder and QFormer, each over one shared channel."""

    def __init__(self, vision: grpc.aio.Channel, qformer: grpc.aio.Channel, config: CheckpointConfig) -> None:
        self._vision = VisionEncoderStub(vision)
        self._qformer = QFormerStub(qformer)
        self._config = config
        self._encodes: SingleFlight[EncodeReply] = SingleFlight()
        self._inlines: SingleFlight[tuple[bytes, dict[str, float]]] = SingleFlight()
        self._holders: Counter[str] = Counter()  # by the id of the work

    async def encode(self, visual: Visual, deadline: float) -> Encoded[None]:
        """Has the visual tokens made under their key. Raises what Encode raised."""

        async def work() -> EncodeReply:
            return await self._encode(visual, deadline, inline=False)

        reply, shared = await self._encodes.do(visual.tokens_key, work)
        if reply.work_id:
            self._holders[reply.work_id] += 1
        return Encoded(None, shared, _seconds(reply), reply.work_id)

    def release(self, work_id: str) -> bool:
        """One request less is interested in queued work; whether it was the last one."""
        self._holders[work_id] -= 1
        if self._holders[work_id] > 0:
            return False
        del self._holders[work_id]
        return True

    async def inline(self, visual: Visual, deadline: float) -> Encoded[bytes]:
        """The visual tokens themselves: float16 bytes of [queries, width]. Redis is not touched."""

        async def work() -> tuple[bytes, dict[str, float]]:
            reply = await self._encode(visual, deadline, inline=True)
            request = QueryRequest(
                features=Features(tensor=reply.features), instruction=visual.instruction, salt=visual.salt, inline=True
            )
            with tracing.span("qformer.query", kind=tracing.Kind.CLIENT):
                answer = await rpc.call(self._qformer.Query, request, deadline=deadline)
            envelope = wire.unpack(
                answer.tokens.envelope,
                stage=wire.Stage.TOKENS,
                fingerprint=self._config.fingerprints["qformer"],
                shape=(self._config.queries, self._config.qformer_width),
            )
            return envelope.array.tobytes(), _seconds(reply) | {
                "qformer_queue": answer.queue_seconds,
                "qformer": answer.compute_seconds,
            }

        (tokens, seconds), shared = await self._inlines.do(visual.tokens_key, work)
        return Encoded(tokens, shared, seconds)

    async def _encode(self, visual: Visual, deadline: float, *, inline: bool) -> EncodeReply:
        picture = visual.picture
        request = EncodeRequest(
            image=picture.data,
            image_id=picture.image_id,
            salt=visual.salt,
            instruction=visual.instruction,
            inline=inline,
        )
        try:
            with tracing.span("vision.encode", {"ziya.inline": inline}, kind=tracing.Kind.CLIENT):
                reply: EncodeReply = await rpc.call(self._vision.Encode, request, deadline=deadline)
        except (NotFound, BusUnavailable) as error:
            if picture.data or (isinstance(error, BusUnavailable) and not inline):
                raise
            raise NotFound(f"{picture.where}: this image_id is not cached (any more); send the image again") from None
        return reply


def _seconds(reply: EncodeReply) -> dict[str, float]:
    return {"vision_queue": reply.queue_seconds, "vision": reply.compute_seconds}
