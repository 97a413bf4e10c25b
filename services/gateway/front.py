"""What both faces do around the pipeline: let a request in, give it a deadline, count and log its end.

A face turns its own protocol into an Ask and the pieces into its own protocol; every rule between is here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from services.gateway.admission import Admission
from services.gateway.api_keys import Keys
from services.gateway.dialogue import Ask
from services.gateway.job import Summary
from services.gateway.llama import Piece
from services.gateway.metrics import GatewayMetrics
from services.gateway.pipeline import Pipeline
from ziya.errors import BadField, Cancelled, Internal, ModelNotFound, ZiyaError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds that a request gets when it does not say, and the most that it may ask for."""

    default: float
    longest: float

    def deadline(self, wanted: float | None) -> float:
        """Absolute unix seconds."""
        return time.time() + min(self.default if wanted is None else wanted, self.longest)


class Front:
    """Shared by the HTTP and the gRPC face."""

    def __init__(
        self,
        model: str,
        *,
        keys: Keys,
        admission: Admission,
        limits: TimeLimits,
        pipeline: Pipeline,
        metrics: GatewayMetrics,
    ) -> None:
        self.model = model
        self.keys = keys
        self.admission = admission
        self.limits = limits
        self._pipeline = pipeline
        self._metrics = metrics

    def adapter_of(self, name: str) -> str:
        """The LoRA adapter in a model's name, as in ziya-visual:NAME; "" for none. ModelNotFound for another model."""
        model, _, adapter = name.partition(":")
        if model != self.model:
            raise ModelNotFound(f"the model {name!r} is not served here; this server has {self.model!r}")
        return adapter

    def answer(self, ask: Ask) -> AsyncGenerator[Piece | Summary, None]:
        """The pipeline's answer."""
        return self._pipeline.answer(ask)

    @contextmanager
    def admitted(self, face: str) -> Iterator[None]:
        """Holds a place for one request, and notes how it ended. Raises as `Admission.enter`."""
        started = time.monotonic()
        failure: ZiyaError | None = Internal("the handler failed")
        try:
            with self.admission.enter():
                self._metrics.in_flight.set(self.admission.in_flight)
                yield
            failure = None
        except ZiyaError as error:
            failure = error
            raise
        except (asyncio.CancelledError, GeneratorExit):
            failure = Cancelled("the client went away")
            raise
        finally:
            self._metrics.in_flight.set(self.admission.in_flight)
            self._metrics.ended(face, failure)
            log.info("request ended", extra=_entry(face, failure, time.monotonic() - started))


def _entry(face: str, failure: ZiyaError | None, seconds: float) -> dict[str, object]:
    entry: dict[str, object] = {"face": face, "outcome": type(failure).__name__ if failure else "ok"}
    if failure is not None:
        entry["reason"] = failure.message
    if isinstance(failure, BadField):
        entry["param"] = failure.param
    return entry | {"seconds": round(seconds, 6)}
