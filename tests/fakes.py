"""Stand-ins for what is behind the gateway: real gRPC servers on real ports, that do as a test tells them.

`FakeTriton` is in fake_triton.py. `FakeVision` makes features and, since there is no Q-Former process, the tokens as
well; `FakeQFormer` does the same arithmetic inline. The answer names the tokens it was made from, so that a
test sees at once whether the bus and the inline path gave the model the same thing.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from protos import qformer_pb2, tensor_pb2, vision_pb2
from protos.qformer_pb2_grpc import QFormerServicer, add_QFormerServicer_to_server
from protos.vision_pb2_grpc import VisionEncoderServicer, add_VisionEncoderServicer_to_server
from ziya import keys, rpc_server, wire
from ziya.bus import Bus
from ziya.checkpoint import CheckpointConfig
from ziya.content import ContentKeys
from ziya.errors import NotFound, ZiyaError
from ziya.telemetry import Metrics

CONFIG = CheckpointConfig(
    name="fake",
    queries=4,
    vision_width=8,
    qformer_width=6,
    llm_width=16,
    context_length=512,
    fingerprints={"vision": "v" * 64, "qformer": "q" * 64, "llama": "l" * 64},
)
PATCHES = 5
Context = grpc.aio.ServicerContext[Any, Any]


def features_of(image_id: str) -> np.ndarray:
    """Features that differ for every image: float16 [patches, width]."""
    seed = int(image_id[:8], 16)
    return np.random.default_rng(seed).standard_normal((PATCHES, CONFIG.vision_width)).astype(np.float16)


def tokens_of(features: np.ndarray) -> np.ndarray:
    """Visual tokens of features: float16 [queries, width]."""
    return np.ascontiguousarray(features[: CONFIG.queries, : CONFIG.qformer_width] * np.float16(2))


def sight_of(tokens: bytes) -> str:
    """The word by which the fake model names visual tokens."""
    return f"sight-{hashlib.sha256(tokens).hexdigest()[:8]}"


def expected_sight(image: bytes) -> str:
    """The word that an answer about this image file must hold."""
    return sight_of(tokens_of(features_of(keys.image_id(image))).tobytes())


@dataclass
class Gate:
    """A point where a fake stops until told to go on; `reached` is set when somebody stands there."""

    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    async def passing(self) -> None:
        self.reached.set()
        await self.is_open.wait()


@dataclass
class Behaviour:
    """What a fake does next. `gate` stops it before its work; `errors` are raised first, one a call."""

    errors: list[ZiyaError] = field(default_factory=list)
    gate: Gate | None = None
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def enter(self) -> None:
        self.entered.set()
        try:
            if self.gate is not None:
                await self.gate.passing()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.errors:
            raise self.errors.pop(0)


class FakeVision(VisionEncoderServicer):
    """Encode; `makes_tokens` false leaves the features on the bus and nobody to make tokens of them.

    `before_reply` stops it when the tokens are there and only the reply is missing.
    """

    def __init__(self, bus: Bus, content: ContentKeys) -> None:
        self.bus, self.content = bus, content
        self.behaviour = Behaviour()
        self.requests: list[vision_pb2.EncodeRequest] = []
        self.makes_tokens = True
        self.before_reply: Gate | None = None
        self.work_id = ""
        self.answered = 0
        self.remembers: set[str] = set()

    async def Encode(self, request: vision_pb2.EncodeRequest, context: Context) -> vision_pb2.EncodeReply:
        self.requests.append(request)
        await self.behaviour.enter()
        if not request.image and request.image_id not in self.remembers:
            raise NotFound("these features are not cached")
        features = features_of(request.image_id)
        self.remembers.add(request.image_id)
        features_key = self.content.features(request.image_id, request.salt)
        reply = vision_pb2.EncodeReply(
            image_id=request.image_id, features_key=features_key, queue_seconds=0.001, compute_seconds=0.002
        )
        if request.inline:
            envelope = wire.pack(features, stage=wire.Stage.FEATURES, fingerprint=CONFIG.fingerprints["vision"])
            reply.features.CopyFrom(tensor_pb2.Tensor(envelope=envelope))
            return reply
        reply.tokens_key = self.content.tokens(features_key, request.instruction)
        if self.makes_tokens:
            await self.bus.put(reply.tokens_key, pack_tokens(tokens_of(features)), 60)
            await self.bus.announce(reply.tokens_key)
        else:
            await self.bus.ping()
        if self.before_reply is not None:
            await self.before_reply.passing()
        reply.work_id = self.work_id
        self.answered += 1
        return reply


class FakeQFormer(QFormerServicer):
    """Query, inline only."""

    def __init__(self) -> None:
        self.behaviour = Behaviour()
        self.requests: list[qformer_pb2.QueryRequest] = []

    async def Query(self, request: qformer_pb2.QueryRequest, context: Context) -> qformer_pb2.QueryReply:
        self.requests.append(request)
        await self.behaviour.enter()
        envelope = wire.unpack(
            request.features.tensor.envelope,
            stage=wire.Stage.FEATURES,
            fingerprint=CONFIG.fingerprints["vision"],
            shape=(PATCHES, CONFIG.vision_width),
        )
        tokens = tensor_pb2.Tensor(envelope=pack_tokens(tokens_of(envelope.array)))
        return qformer_pb2.QueryReply(tokens=tokens, queue_seconds=0.001, compute_seconds=0.001)


def pack_tokens(tokens: np.ndarray) -> bytes:
    return wire.pack(tokens, stage=wire.Stage.TOKENS, fingerprint=CONFIG.fingerprints["qformer"])


def vision_service(servicer: FakeVision, port: int = 0) -> rpc_server.GrpcServer:
    return rpc_server.GrpcServer(
        "vision",
        lambda server: add_VisionEncoderServicer_to_server(servicer, server),
        ["ziya.visual.v1.VisionEncoder"],
        options=rpc_server.ServerOptions(port=port),
        metrics=Metrics("vision"),
    )


def qformer_service(servicer: FakeQFormer, port: int = 0) -> rpc_server.GrpcServer:
    return rpc_server.GrpcServer(
        "qformer",
        lambda server: add_QFormerServicer_to_server(servicer, server),
        ["ziya.visual.v1.QFormer"],
        options=rpc_server.ServerOptions(port=port),
        metrics=Metrics("qformer"),
    )


def soon(seconds: float = 30.0) -> float:
    """A deadline for waits that end long before it."""
    return time.time() + seconds
