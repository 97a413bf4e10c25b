"""What both faces do around the pipeline: let a request in, give it a deadline, count its end.

A face turns its own protocol into an Ask and the pieces into its own protocol; every rule between is here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from services.gateway.admission.admission import Admission
from services.gateway.admission.body_room import BodyRoom
from services.gateway.admission.cost import Cost, Costs
from services.gateway.admission.metrics import AdmissionMetrics
from services.gateway.dialogue import Ask
from services.gateway.job import Summary
from services.gateway.keys.api_keys import Caller, Keys
from services.gateway.keys.key_entry import Key
from services.gateway.keys.quotas import Quotas
from services.gateway.llama import Piece
from services.gateway.metrics import GatewayMetrics
from services.gateway.pipeline import Pipeline
from ziya import tracing
from ziya.errors import Cancelled, Forbidden, Internal, ModelNotFound, ZiyaError


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds that a request gets when it does not say, and the most that it may ask for."""

    default: float
    longest: float

    def deadline(self, wanted: float | None) -> float:
        """Absolute unix seconds."""
        return time.time() + min(self.default if wanted is None else wanted, self.longest)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What stands between a request and the work: what it costs, what its key may, what there is room for."""

    costs: Costs
    quotas: Quotas
    admission: Admission
    bodies: BodyRoom
    metrics: AdmissionMetrics


class Front:
    """Shared by the HTTP and the gRPC face."""

    def __init__(
        self,
        model: str,
        *,
        keys: Keys,
        bounds: Bounds,
        limits: TimeLimits,
        pipeline: Pipeline,
        metrics: GatewayMetrics,
    ) -> None:
        self.model = model
        self.keys = keys
        self.admission = bounds.admission
        self.bodies = bounds.bodies
        self._bounds = bounds
        self.limits = limits
        self._pipeline = pipeline
        self._metrics = metrics

    def adapter_of(self, name: str, key: Key) -> str:
        """The LoRA adapter in a model's name, as in ziya-visual:NAME; "" for none.

        Raises ModelNotFound for another model, Forbidden for an adapter that is not the key's.
        """
        model, _, adapter = name.partition(":")
        if model != self.model:
            raise ModelNotFound(f"the model {name!r} is not served here; this server has {self.model!r}")
        if adapter and key.adapters is not None and adapter not in key.adapters:
            raise Forbidden(f"the key {key.name} may not use the adapter {adapter!r}")
        return adapter

    async def answer(
        self, ask: Ask, caller: Caller, tell: Callable[[Mapping[str, str]], None] = lambda _: None
    ) -> AsyncGenerator[Piece | Summary, None]:
        """The pipeline's answer, once the key's limits and the system have room for it.

        `tell` gets how the key's limits stand, as HTTP headers, before the first piece. Raises as Quotas.take,
        Admission.place and Pipeline.answer do.
        """
        cost, began = self._bounds.costs.of(ask), time.perf_counter()
        with await self._bounds.quotas.take(caller.key, cost) as grant:
            tell(grant.headers)
            with await self.admission.place(caller, cost, ask.deadline) as place:
                grant.spent = cost
                tracing.record("gateway.admission", began, time.perf_counter())
                async with aclosing(self._pipeline.answer(ask)) as pieces:
                    async for piece in pieces:
                        place.seen()
                        if isinstance(piece, Summary):
                            grant.spent = Cost(cost.images, piece.usage.prompt + piece.usage.completion)
                            self._bounds.metrics.used(caller.key.name, cost.images, grant.spent.tokens)
                        yield piece

    @contextmanager
    def admitted(self, face: str, authorization: str, priority: str) -> Iterator[Caller]:
        """Lets one request in, with its headers `Authorization` and `X-Priority`, and notes how it ended.

        Raises as `Keys.caller` and `Admission.enter` do.
        """
        failure: ZiyaError | None = Internal("the handler failed")
        try:
            caller = self.keys.caller(authorization, priority)
            with self.admission.enter(caller):
                self._metrics.in_flight.set(self.admission.in_flight)
                yield caller
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
