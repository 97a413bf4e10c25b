"""The vision service: `python -m services.vision.app`. Settings, wiring, serve.

The port opens at once and the weights load behind it, in a thread; the service's health says SERVING when the
model has run once and Redis has answered once. Redis may be away, at the start and later: inline requests need none,
and calls are served as soon as the model is there.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, ClassVar, Literal

import grpc.aio
from pydantic import Field

from protos.vision_pb2 import DESCRIPTOR
from protos.vision_pb2_grpc import add_VisionEncoderServicer_to_server
from services.vision.features import FeatureSource, Limits
from services.vision.servicer import VisionServicer
from ziya.bus import Bus
from ziya.content import ContentKeys
from ziya.images import ImageLimits
from ziya.program import run
from ziya.redis_arrival import RedisArrival
from ziya.rpc_server import ServerOptions, serve
from ziya.settings import ProcessSettings, metrics_port
from ziya.telemetry import Metrics
from ziya.tls import TlsFolder

if TYPE_CHECKING:
    from services.vision.encoder import Encoder

FULL_NAME = DESCRIPTOR.services_by_name["VisionEncoder"].full_name
log = logging.getLogger(__name__)


class Settings(ProcessSettings):
    """Sizes are in bytes, times in seconds."""

    program: ClassVar[str] = "vision"

    vision_port: int = Field(9001, ge=0, le=65535)
    vision_metrics_port: int | None = Field(None, ge=0, le=65535)
    vision_max_batch: int = Field(16, ge=1)
    # An idle model starts at once, or with what is on its way in here; a wait is for what is not here yet.
    vision_max_wait: float = Field(0.0, ge=0)
    vision_max_queue: int = Field(128, ge=1)
    # Threads of one forward pass, and threads that decode and preprocess.
    vision_threads: int = Field(1, ge=1)
    vision_decoders: int = Field(2, ge=1)
    vision_device: str = "cpu"
    vision_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    # Features kept in memory, for the inline path: 64 MiB are about 90 images of the full model.
    vision_memory_bytes: int = Field(64 << 20, ge=0)
    vision_max_image_bytes: int = Field(20 << 20, ge=1)
    vision_max_image_pixels: int = Field(50_000_000, ge=1)


class VisionService:
    """All parts of one vision service, not yet listening. Raises CheckpointError for a folder it cannot use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics(settings.program)
        keys = ContentKeys.load(settings.checkpoint)
        self._bus = Bus.of(settings, self.metrics)
        self._redis = RedisArrival.of(self._bus, settings)
        limits = Limits(
            settings.vision_max_batch,
            settings.vision_max_wait,
            settings.vision_max_queue,
            settings.vision_decoders,
            settings.vision_memory_bytes,
        )
        self._source = FeatureSource(
            self._load, fingerprint=keys.vision_fingerprint, limits=limits, metrics=self.metrics
        )
        self._servicer = VisionServicer(
            self._source, keys, self._bus, ttl=settings.features_ttl, timeout=settings.request_timeout
        )

    def register(self, server: grpc.aio.Server) -> None:
        add_VisionEncoderServicer_to_server(self._servicer, server)

    async def ready(self) -> None:
        """Returns when the model has run once, and Redis has answered or was waited for long enough."""
        await asyncio.gather(self._start(), self._redis.wait())

    async def _start(self) -> None:
        await self._source.start()
        log.info("the vision encoder is loaded")

    async def close(self) -> None:
        await self._source.close()
        await self._bus.close()

    def _load(self) -> Encoder:
        from services.vision.encoder import Encoder  # noqa: PLC0415 (torch: seconds, while the port is open)

        settings = self.settings
        limits = ImageLimits(settings.vision_max_image_bytes, settings.vision_max_image_pixels)
        return Encoder.load(
            settings.checkpoint,
            limits=limits,
            threads=settings.vision_threads,
            dtype=settings.vision_dtype,
            device=settings.vision_device,
        )


async def main(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT."""
    service = VisionService(settings)
    port = settings.vision_port
    options = ServerOptions.of(
        settings,
        port=port,
        metrics_port=metrics_port(port, settings.vision_metrics_port),
        tls=TlsFolder.of(settings, service.metrics),
    )
    try:
        await serve(
            settings.program,
            service.register,
            [FULL_NAME],
            options=options,
            metrics=service.metrics,
            ready=service.ready,
        )
    finally:
        await service.close()


if __name__ == "__main__":
    run(Settings, main)
