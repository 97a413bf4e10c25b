"""The Q-Former service: `python -m services.qformer.app`. Settings, wiring, serve.

RPCs and the bus share one model and one batcher. The worker begins when the weights are loaded, and
waits for Redis as long as it takes; RPCs that carry their tensors need none, and are served from then on. The
service's health says SERVING when the model has run once and Redis has answered once.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, ClassVar, Literal

import grpc.aio
from pydantic import Field

from protos.qformer_pb2 import DESCRIPTOR
from protos.qformer_pb2_grpc import add_QFormerServicer_to_server
from services.qformer.servicer import QFormerServicer
from services.qformer.tokens import Limits, TokenSource
from services.qformer.worker import Worker
from ziya.bus import Bus
from ziya.content import ContentKeys
from ziya.program import run
from ziya.redis_arrival import RedisArrival
from ziya.rpc_server import ServerOptions, serve
from ziya.settings import ProcessSettings, metrics_port
from ziya.telemetry import Metrics
from ziya.tls import TlsFolder

if TYPE_CHECKING:
    from services.qformer.resampler import Resampler

FULL_NAME = DESCRIPTOR.services_by_name["QFormer"].full_name
log = logging.getLogger(__name__)


class Settings(ProcessSettings):
    """Times are in seconds."""

    program: ClassVar[str] = "qformer"

    qformer_port: int = Field(9002, ge=0, le=65535)
    qformer_metrics_port: int | None = Field(None, ge=0, le=65535)
    # Also how many references are read from the bus at once.
    qformer_max_batch: int = Field(16, ge=1)
    # An idle model starts at once, or with what is on its way in here; a wait is for what is not here yet.
    qformer_max_wait: float = Field(0.0, ge=0)
    qformer_max_queue: int = Field(128, ge=1)
    # What a peer has neither finished nor renewed for so long is taken over.
    qformer_claim_idle: float = Field(10.0, gt=0)
    qformer_threads: int = Field(1, ge=1)
    qformer_device: str = "cpu"
    qformer_dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class QFormerService:
    """All parts of one Q-Former service, not yet listening. Raises CheckpointError for a folder it cannot use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics(settings.program)
        keys = ContentKeys.load(settings.checkpoint)
        self._bus = Bus.of(settings, self.metrics)
        self._redis = RedisArrival.of(self._bus, settings)
        limits = Limits(settings.qformer_max_batch, settings.qformer_max_wait, settings.qformer_max_queue)
        self._source = TokenSource(self._load, keys=keys, limits=limits, metrics=self.metrics)
        self._worker = Worker(
            self._bus,
            self._source,
            keys,
            count=settings.qformer_max_batch,
            claim_idle=settings.qformer_claim_idle,
            ttl=settings.tokens_ttl,
            metrics=self.metrics,
        )
        self._servicer = QFormerServicer(
            self._source, keys, self._bus, ttl=settings.tokens_ttl, timeout=settings.request_timeout
        )

    def register(self, server: grpc.aio.Server) -> None:
        add_QFormerServicer_to_server(self._servicer, server)

    async def ready(self) -> None:
        """Returns when the model has run once, and Redis has answered or was waited for long enough."""
        await asyncio.gather(self._start(), self._redis.wait())

    async def _start(self) -> None:
        await self._source.start()
        self._worker.start()
        log.info("the Q-Former is loaded")

    async def close(self) -> None:
        await self._worker.close(self.settings.drain_seconds)
        await self._source.close()
        await self._bus.close()

    def _load(self) -> Resampler:
        from services.qformer.resampler import Resampler  # noqa: PLC0415 (torch: seconds, while the port is open)

        settings = self.settings
        return Resampler.load(
            settings.checkpoint,
            threads=settings.qformer_threads,
            dtype=settings.qformer_dtype,
            device=settings.qformer_device,
        )


async def main(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT."""
    service = QFormerService(settings)
    port = settings.qformer_port
    options = ServerOptions.of(
        settings,
        port=port,
        metrics_port=metrics_port(port, settings.qformer_metrics_port),
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
