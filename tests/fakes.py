"""Stand-ins for what is behind the gateway: real gRPC servers on real ports, that do as a test tells them.

`FakeTriton` speaks KServe v2 with the servicer that tritonclient ships, and waits for visual tokens on a real
bus as the real model does. `FakeVision` makes features and, since there is no Q-Former process, the tokens as
well; `FakeQFormer` does the same arithmetic inline. The answer names the tokens it was made from, so that a
test sees at once whether the bus and the inline path gave the model the same thing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as kserve
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from protos import qformer_pb2, tensor_pb2, vision_pb2
from protos.qformer_pb2_grpc import QFormerServicer, add_QFormerServicer_to_server
from protos.vision_pb2_grpc import VisionEncoderServicer, add_VisionEncoderServicer_to_server
from ziya import keys, rpc, wire
from ziya.bus import Announcements, Bus
from ziya.checkpoint import CheckpointConfig
from ziya.content import ContentKeys
from ziya.errors import NotFound, ZiyaError, to_line
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
    """Encode; `makes_tokens` false leaves the features on the bus and nobody to make tokens of them."""

    def __init__(self, bus: Bus, content: ContentKeys) -> None:
        self.bus, self.content = bus, content
        self.behaviour = Behaviour()
        self.requests: list[vision_pb2.EncodeRequest] = []
        self.makes_tokens = True
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


@dataclass(frozen=True)
class Asked:
    """A request as the fake model read it."""

    texts: list[str]
    image_keys: list[str]
    sights: list[str]
    sampling: dict[str, Any]
    inline: bool


class FakeTriton(GRPCInferenceServiceServicer):
    """`ziya_llama`: answers with the sights of its images and `words`, a word a response.

    `error_after`: words sent before `late_error` comes. `pause_after`: words sent before `pause` is waited for.
    """

    def __init__(self, announcements: Announcements) -> None:
        self._announcements = announcements
        self.behaviour = Behaviour()
        self.words = ["你好", "，", "this is", " a fake", " answer", "。"]
        self.asked: list[Asked] = []
        self.opened = 0
        self.ready = True
        self.late_error: ZiyaError | None = None
        self.error_after = 2
        self.pause: Gate | None = None
        self.pause_after = 1

    async def ModelReady(self, request: kserve.ModelReadyRequest, context: Context) -> kserve.ModelReadyResponse:
        return kserve.ModelReadyResponse(ready=self.ready and request.name == "ziya_llama")

    async def ModelStreamInfer(
        self, requests: AsyncIterator[kserve.ModelInferRequest], context: Context
    ) -> AsyncIterator[kserve.ModelStreamInferResponse]:
        try:
            async for request in requests:
                self.opened += 1
                self.behaviour.entered.set()
                async for response in self._answer(request):
                    yield response
        except ZiyaError as error:
            yield kserve.ModelStreamInferResponse(error_message=to_line(error))
        except asyncio.CancelledError:
            self.behaviour.cancelled.set()
            raise

    async def _answer(self, request: kserve.ModelInferRequest) -> AsyncIterator[kserve.ModelStreamInferResponse]:
        asked = await self._read(request)
        self.asked.append(asked)
        await self.behaviour.enter()
        words = [*(f"[{sight}]" for sight in asked.sights), *self.words]
        limit = asked.sampling.get("max_tokens", len(words))
        for number, word in enumerate(words[:limit]):
            if self.late_error is not None and number == self.error_after:
                raise self.late_error
            if self.pause is not None and number == self.pause_after:
                await self.pause.passing()
            yield _response(word)
        image_tokens = CONFIG.queries * len(asked.sights)
        usage = {
            "prompt_tokens": sum(map(len, asked.texts)) + image_tokens,
            "image_tokens": image_tokens,
            "completion_tokens": min(limit, len(words)),
            "visual_wait_seconds": 0.001,
            "queue_seconds": 0.001,
            "prefill_seconds": 0.002,
            "decode_seconds": 0.003,
        }
        yield _response("", "length" if limit < len(words) else "stop", json.dumps(usage))

    async def _read(self, request: kserve.ModelInferRequest) -> Asked:
        inputs = {
            tensor.name: (list(tensor.shape), raw)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        sampling = json.loads(_strings(inputs["sampling"][1])[0])
        image_keys = _strings(inputs["image_keys"][1]) if "image_keys" in inputs else []
        if "visual_tokens" in inputs:
            (count, queries, width), raw = inputs["visual_tokens"]
            size = queries * width * 2
            sights = [sight_of(raw[i * size : (i + 1) * size]) for i in range(count)]
        else:
            sights = [await self._sight(key, sampling["deadline"]) for key in image_keys]
        texts = _strings(inputs["prompt"][1])
        assert len(texts) == len(sights) + 1
        return Asked(texts, image_keys, sights, sampling, "visual_tokens" in inputs)

    async def _sight(self, key: str, deadline: float) -> str:
        data = await self._announcements.wait(key, deadline)
        shape = (CONFIG.queries, CONFIG.qformer_width)
        fingerprint = CONFIG.fingerprints["qformer"]
        return sight_of(
            wire.unpack(data, stage=wire.Stage.TOKENS, fingerprint=fingerprint, shape=shape).array.tobytes()
        )


def _response(text: str, finish_reason: str = "", usage: str = "") -> kserve.ModelStreamInferResponse:
    response = kserve.ModelInferResponse(model_name="ziya_llama")
    for name, value in (("text", text), ("finish_reason", finish_reason), ("usage", usage)):
        response.outputs.add(name=name, datatype="BYTES", shape=[1])
        raw = value.encode()
        response.raw_output_contents.append(struct.pack("<I", len(raw)) + raw)
    return kserve.ModelStreamInferResponse(infer_response=response)


def _strings(raw: bytes) -> list[str]:
    texts = []
    while raw:
        (size,) = struct.unpack_from("<I", raw)
        texts.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    return texts


class TritonServer:
    """A FakeTriton on a port of its own, that can be killed and started again at the same port."""

    def __init__(self, servicer: FakeTriton) -> None:
        self.servicer = servicer
        self.port = 0
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_GRPCInferenceServiceServicer_to_server(self.servicer, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def kill(self) -> None:
        """Connections break at once, as when the process dies."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None


@dataclass
class Backend:
    """All that is behind a gateway."""

    bus: Bus
    vision: FakeVision
    qformer: FakeQFormer
    triton: FakeTriton
    triton_server: TritonServer
    vision_server: rpc.GrpcServer
    vision_port: int
    qformer_server: rpc.GrpcServer
    qformer_port: int


@asynccontextmanager
async def backend(redis_url: str, content: ContentKeys) -> AsyncIterator[Backend]:
    """Starts the fakes on free ports."""
    bus = Bus(redis_url)
    announcements = Announcements(bus)
    await announcements.start()
    vision, qformer, triton = FakeVision(bus, content), FakeQFormer(), FakeTriton(announcements)
    vision_server, qformer_server = vision_service(vision), qformer_service(qformer)
    triton_server = TritonServer(triton)
    await triton_server.start()
    try:
        yield Backend(
            bus=bus,
            vision=vision,
            qformer=qformer,
            triton=triton,
            triton_server=triton_server,
            vision_server=vision_server,
            vision_port=await vision_server.start(),
            qformer_server=qformer_server,
            qformer_port=await qformer_server.start(),
        )
    finally:
        for server in (vision_server, qformer_server):
            await server.stop()
        await triton_server.kill()
        await announcements.close()
        await bus.close()


def vision_service(servicer: FakeVision, port: int = 0) -> rpc.GrpcServer:
    return rpc.GrpcServer(
        "vision",
        lambda server: add_VisionEncoderServicer_to_server(servicer, server),
        ["ziya.visual.v1.VisionEncoder"],
        options=rpc.ServerOptions(port=port),
        metrics=Metrics("vision"),
    )


def qformer_service(servicer: FakeQFormer, port: int = 0) -> rpc.GrpcServer:
    return rpc.GrpcServer(
        "qformer",
        lambda server: add_QFormerServicer_to_server(servicer, server),
        ["ziya.visual.v1.QFormer"],
        options=rpc.ServerOptions(port=port),
        metrics=Metrics("qformer"),
    )


def soon(seconds: float = 30.0) -> float:
    """A deadline for waits that end long before it."""
    return time.time() + seconds
