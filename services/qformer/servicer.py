"""QFormer's RPCs: the work that the bus worker does, asked for directly; and retrieval.

Features come as a tensor or as the key of some on the bus; the tokens go back in the reply or to the
bus, stored and announced like the worker's. With tensors both ways Redis is not touched.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import grpc.aio

from protos.qformer_pb2 import (
    Embedding,
    EmbedImageRequest,
    EmbedTextRequest,
    Features,
    MatchReply,
    MatchRequest,
    QueryReply,
    QueryRequest,
)
from protos.qformer_pb2_grpc import QFormerServicer as QFormerBase
from protos.tensor_pb2 import Tensor
from services.qformer.questions import Array
from services.qformer.tokens import TokenSource
from ziya.bus import Bus
from ziya.content import ContentKeys
from ziya.errors import InvalidEnvelope, InvalidRequest, NotFound
from ziya.keys import FEATURES_PREFIX
from ziya.rpc import deadline_of

Context = grpc.aio.ServicerContext[Any, Any]


class QFormerServicer(QFormerBase):
    """`ttl` is that of tokens on the bus, `timeout` that of requests without a deadline; both in seconds."""

    def __init__(self, source: TokenSource, keys: ContentKeys, bus: Bus, *, ttl: float, timeout: float) -> None:
        self._source, self._keys, self._bus, self._ttl, self._timeout = source, keys, bus, ttl, timeout

    async def Query(self, request: QueryRequest, context: Context) -> QueryReply:
        features = await self._features(request.features)
        run = await self._source.tokens(features, request.instruction, self._deadline(context))
        key = self._keys.tokens(self._features_key(request), request.instruction)
        if not request.inline:
            await self._bus.deliver(key, run.value, self._ttl)
        return QueryReply(
            tokens_key=key,
            tokens=Tensor(envelope=run.value) if request.inline else None,
            queue_seconds=run.queue_seconds,
            compute_seconds=run.compute_seconds,
        )

    async def EmbedImage(self, request: EmbedImageRequest, context: Context) -> Embedding:
        features = await self._features(request.features)
        envelope = await self._source.embed_image(features, self._deadline(context))
        return Embedding(embedding=Tensor(envelope=envelope))

    async def EmbedText(self, request: EmbedTextRequest, context: Context) -> Embedding:
        envelope = await self._source.embed_text(request.text, self._deadline(context))
        return Embedding(embedding=Tensor(envelope=envelope))

    async def Match(self, request: MatchRequest, context: Context) -> MatchReply:
        features = await self._features(request.features)
        probability, cosine = await self._source.match(features, request.text, self._deadline(context))
        return MatchReply(match_probability=probability, similarity=cosine)

    async def _features(self, source: Features) -> Array:
        match source.WhichOneof("source"):
            case "tensor":
                envelope: bytes | None = source.tensor.envelope
            case "features_key" if not source.features_key.startswith(FEATURES_PREFIX):
                raise InvalidRequest(f"features_key must be one that Encode gave: it begins with {FEATURES_PREFIX}")
            case "features_key":
                envelope = await self._bus.get(source.features_key)
            case _:
                raise InvalidRequest("features is empty: give a tensor or a features_key")
        if envelope is None:
            raise NotFound(f"{source.features_key} is not (any more) on the bus")
        (opened,) = await self._source.open([envelope])
        if isinstance(opened, InvalidEnvelope):
            raise opened
        return opened

    def _features_key(self, request: QueryRequest) -> str:
        """The key that was given, else one for these very features, which have no image that we know of."""
        source = request.features
        return source.features_key or self._keys.features(sha256(source.tensor.envelope).hexdigest(), request.salt)

    def _deadline(self, context: Context) -> float:
        return deadline_of(context, self._timeout)
