"""A request's way through the stages, as services/gateway takes it.

admitted -> the gateway's own work -> Triton's stream opened, a place taken there
         -> visual tokens: cached, being made already, or vision -> bus -> Q-Former
         -> the engine -> first text -> last text, the places given back
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from cli.capacity.batcher import Batcher, Work
from cli.capacity.bus import Bus
from cli.capacity.clock import Clock
from cli.capacity.engine import Engine
from cli.capacity.fleet import Fleet
from cli.capacity.request import Outcome, Request
from cli.capacity.routes import Routes
from cli.capacity.stage_times import StageTimes


class Gateway:
    """A replica: one event loop, which does one thing at a time, and its channels to the stages behind it."""

    def __init__(self, clock: Clock, vision: Routes[Batcher], llama: Routes[Engine]) -> None:
        self._clock = clock
        self.vision, self.llama = vision, llama
        self.in_flight = 0
        self._free_at = 0.0
        self.busy_seconds = 0.0
        self.retired = False

    def work(self, seconds: float, then: Callable[[float], None]) -> None:
        """Does something on the event loop, in its turn; `then` gets the seconds that it waited."""
        starts = max(self._clock.now, self._free_at)
        self._free_at = starts + seconds
        self.busy_seconds += seconds
        self._clock.at(self._free_at, partial(then, starts - self._clock.now))


@dataclass(frozen=True)
class Terms:
    """`max_in_flight` of a gateway; `cache_seconds` that visual tokens are kept after their last use."""

    max_in_flight: int = 128
    cache_seconds: float = 600.0


@dataclass(frozen=True)
class Stages:
    """Where requests go."""

    gateways: Fleet[Gateway]
    vision: Fleet[Batcher]
    qformer: Fleet[Batcher]
    llama: Fleet[Engine]
    bus: Bus


class Journey:
    """Takes requests along. Each ends exactly once: answered, refused (a bounded queue was full) or expired."""

    def __init__(
        self, clock: Clock, times: StageTimes, stages: Stages, terms: Terms, draw: np.random.Generator
    ) -> None:
        self._clock, self._times, self._stages, self._terms, self._draw = clock, times, stages, terms, draw
        self._cached: dict[str, float] = {}  # image -> when its tokens are forgotten
        self._made: dict[str, list[Request]] = {}  # image in the making -> who waits for it
        self._inside: dict[Request, tuple[Gateway, Engine | None]] = {}
        self.ended = 0

    def begin(self, request: Request) -> None:
        gateways = self._stages.gateways.ready
        if not gateways:
            self._end(request, "refused", "gateway")
            return
        gateway = gateways[int(self._draw.integers(len(gateways)))]
        if gateway.in_flight >= self._terms.max_in_flight:
            self._end(request, "refused", "gateway")
            return
        gateway.in_flight += 1
        self._inside[request] = (gateway, None)
        gateway.work(self._times.gateway.request_seconds, partial(self._open, request, gateway))

    def _open(self, request: Request, gateway: Gateway, waited: float) -> None:
        request.waits["gateway"] = waited
        gateway.llama.call(partial(self._opened, request, gateway))

    def _opened(self, request: Request, gateway: Gateway, engine: Engine) -> None:
        if engine.full:
            self._end(request, "refused", "llama")
            return
        engine.open += 1
        self._inside[request] = (gateway, engine)
        image = request.arrival.image
        if image is None or self._cached.get(image, 0.0) > self._clock.now:
            self._shown(request)
        elif image in self._made:
            self._made[image].append(request)
        else:
            self._made[image] = [request]
            seconds = self._times.vision.around_seconds
            self._clock.after(seconds, lambda: gateway.vision.call(partial(self._encode, image, request)))

    def _encode(self, image: str, first: Request, vision: Batcher) -> None:
        lost = partial(self._lost, image, "vision")
        vision.submit(Work(partial(self._encoded, image, first), lost, first.deadline))

    def _encoded(self, image: str, first: Request, waited: float) -> None:
        first.waits["vision"] = waited
        work = Work(partial(self._queried, image, first), partial(self._lost, image, "qformer"), first.deadline)
        self._clock.after(self._times.qformer.around_seconds, lambda: self._stages.bus.publish(work))

    def _queried(self, image: str, first: Request, waited: float) -> None:
        first.waits["qformer"] = waited
        self._cached[image] = self._clock.now + self._terms.cache_seconds
        for request in self._made.pop(image):
            self._shown(request)

    def _lost(self, image: str, stage: str, why: Outcome) -> None:
        for request in self._made.pop(image):
            self._end(request, why, stage if why == "refused" else "")

    def _shown(self, request: Request) -> None:
        """The engine has all that it needs."""
        if request.arrival.image is not None:
            self._cached[request.arrival.image] = self._clock.now + self._terms.cache_seconds
        engine = self._inside[request][1]
        assert engine is not None
        engine.submit(request, self)

    def first_token(self, request: Request) -> None:
        request.first_token = self._clock.now + self._times.llama.around_seconds - request.arrival.at

    def finished(self, request: Request) -> None:
        gateway, _ = self._inside[request]
        seconds = self._times.gateway.token_seconds * request.arrival.answer_tokens
        gateway.work(seconds, lambda _: self._end(request, self._outcome(request)))

    def _outcome(self, request: Request) -> Outcome:
        return "answered" if self._clock.now <= request.deadline else "expired"

    def expired(self, request: Request) -> None:
        self._end(request, "expired")

    def _end(self, request: Request, outcome: Outcome, refused_by: str = "") -> None:
        assert not request.outcome, "a request ends once"
        request.outcome, request.refused_by = outcome, refused_by
        self.ended += 1
        gateway, engine = self._inside.pop(request, (None, None))
        if gateway is not None:
            gateway.in_flight -= 1
        if engine is not None:
            engine.open -= 1
