"""The two encoder services in this process, listening on free ports, with their own metrics to look at."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from protos.qformer_pb2_grpc import QFormerStub
from protos.vision_pb2_grpc import VisionEncoderStub
from services.qformer import app as qformer_app
from services.vision import app as vision_app
from ziya import rpc, rpc_server, wire
from ziya.content import ContentKeys
from ziya.model.qformer import QFormer
from ziya.telemetry import Metrics

# Nobody listens there.
NO_REDIS = "redis://127.0.0.1:1/0"
NO_WAIT: dict[str, Any] = {"redis_start_seconds": 0}
ATOL = 2e-3  # float16, and sums in another order in another batch
PATCHES = 17


@dataclass(frozen=True)
class Running:
    """A service that listens: its stub, a channel for other services on it, and its metrics."""

    stub: Any
    channel: Any
    metrics: Metrics
    address: str = ""

    def metric(self, name: str, **labels: str) -> float:
        """A sample's value; 0 when it has never been set."""
        return self.metrics.registry.get_sample_value(f"ziya_{self.metrics.service}_{name}", labels) or 0.0


@asynccontextmanager
async def running_vision(checkpoint: Path, redis_url: str = NO_REDIS, **options: Any) -> AsyncIterator[Running]:
    settings = vision_app.Settings(**{"checkpoint": checkpoint, "redis_url": redis_url, **NO_WAIT, **options})
    async with _running("vision", vision_app.VisionService(settings), vision_app.FULL_NAME) as (
        channel,
        metrics,
        address,
    ):
        yield Running(VisionEncoderStub(channel), channel, metrics, address)


@asynccontextmanager
async def running_qformer(checkpoint: Path, redis_url: str = NO_REDIS, **options: Any) -> AsyncIterator[Running]:
    settings = qformer_app.Settings(**{"checkpoint": checkpoint, "redis_url": redis_url, **NO_WAIT, **options})
    async with _running("qformer", qformer_app.QFormerService(settings), qformer_app.FULL_NAME) as (
        channel,
        metrics,
        address,
    ):
        yield Running(QFormerStub(channel), channel, metrics, address)


@asynccontextmanager
async def _running(name: str, service: Any, full_name: str) -> AsyncIterator[tuple[Any, Metrics, str]]:
    options = rpc_server.ServerOptions(max_concurrent=service.settings.max_concurrent)
    server = rpc_server.GrpcServer(
        name, service.register, [full_name], options=options, metrics=service.metrics, ready=service.ready
    )
    port = await server.start()
    try:
        async with rpc.connect(f"127.0.0.1:{port}") as channel:
            yield channel, service.metrics, f"127.0.0.1:{port}"
    finally:
        await server.drain()
        await server.stop()
        await service.close()


def picture(seed: int, size: int = 48) -> bytes:
    """A PNG of random colours; equal seeds give equal files."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def random_features(seed: int) -> np.ndarray:
    """float16 [N, V], as the tiny ViT gives them."""
    return np.random.default_rng(seed).normal(size=(PATCHES, 32)).astype(np.float16)


def direct_tokens(checkpoint: Path, features: np.ndarray, instruction: str = "") -> np.ndarray:
    """Tokens by the model called directly, float16 [Q, D]."""
    model = QFormer.load(checkpoint)
    return model(features[None], [model.tokenize(instruction)] if model.reads_instruction else None)[0]


def packed(keys: ContentKeys, features: np.ndarray) -> bytes:
    return wire.pack(features, stage=wire.Stage.FEATURES, fingerprint=keys.vision_fingerprint)


def tokens(keys: ContentKeys, envelope: bytes, shape: tuple[int, int] = (4, 32)) -> np.ndarray:
    return wire.unpack(envelope, stage=wire.Stage.TOKENS, fingerprint=keys.qformer_fingerprint, shape=shape).array
