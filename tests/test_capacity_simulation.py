"""What the capacity simulation keeps whatever happens: a request ends once, a seed gives the same, no step is lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.capacity.arrivals import Arrival, Mix, poisson, steady
from cli.capacity.clock import Clock
from cli.capacity.control import Scaling
from cli.capacity.engine import Engine, EngineLimits
from cli.capacity.fleet import Fleet
from cli.capacity.journey import Terms
from cli.capacity.request import STAGES, Request
from cli.capacity.routes import Connections, Routes
from cli.capacity.scaler import Direction, Metric, Policy, ScalerSettings
from cli.capacity.simulate import Limits, simulate
from cli.capacity.stage_times import SHIPPED, StageTimes
from services.gateway.settings import Settings as GatewaySettings
from services.llama.settings import PREFILL_TOKENS
from services.llama.settings import Settings as LlamaSettings
from services.qformer.app import Settings as QFormerSettings
from services.qformer.worker import BATCHES_UNDER_WAY
from services.vision.app import Settings as VisionSettings
from tests.stage_times import AMPLE, ONE_EACH, times
from ziya.settings import ProcessSettings

BUSY = times(
    gateway={"request_seconds": 0.01, "token_seconds": 0.001},
    vision={"batch_seconds": {1: 0.2, 4: 0.4}, "around_seconds": 0.05, "spread": 0.3},
    qformer={"batch_seconds": {1: 0.1, 4: 0.3}, "around_seconds": 0.02},
    llama={"step_seconds": {1: 0.02, 4: 0.05}, "prefill_seconds": {1: 0.03, 100: 0.4}, "around_seconds": 0.01},
)
TIGHT = Limits(
    terms=Terms(max_in_flight=12, cache_seconds=5.0),
    vision_max_batch=4,
    qformer_max_batch=4,
    max_queue=3,
    bus_max_backlog=5,
    engine=EngineLimits(slots=2, waiting=6, prefill_tokens=16),
    request_timeout=3.0,
)
images = st.one_of(st.none(), st.sampled_from("abcdefgh"))
arrivals = st.lists(
    st.builds(Arrival, st.floats(0, 20), images, st.integers(1, 50), st.integers(1, 40)), max_size=60
).map(lambda found: sorted(found, key=lambda arrival: arrival.at))


# Comes when all others have ended: it is answered if every place was given back.
LAST = Arrival(1000.0, "the last picture", 1, 1)


@settings(max_examples=60, deadline=None)
@given(arrivals, st.integers(1, 3), st.integers(0, 9))
def test_every_request_ends_exactly_once_and_gives_its_places_back(found: list[Arrival], count: int, seed: int) -> None:
    outcome = simulate([*found, LAST], BUSY, TIGHT, dict.fromkeys(STAGES, count), seed=seed)
    ends = Counter(request.outcome for request in outcome.requests)
    assert sum(ends.values()) == len(found) + 1
    assert set(ends) <= {"answered", "refused", "expired"}
    assert outcome.requests[-1].outcome == "answered"
    for request in outcome.requests:
        assert (request.first_token > 0) or request.outcome != "answered"


def test_tight_bounds_do_refuse_and_do_let_expire() -> None:
    """Else the property above would say little."""
    found = poisson(steady(20.0), 20.0, 60.0, Mix(prompt_tokens=20, answer_tokens=20), seed=1)
    outcome = simulate([*found, LAST], BUSY, TIGHT, ONE_EACH)
    assert min(outcome.count(kind) for kind in ("answered", "refused", "expired")) > 0
    assert outcome.requests[-1].outcome == "answered"


def test_the_same_seed_gives_the_same_and_another_does_not() -> None:
    found = poisson(steady(8.0), 8.0, 30.0, Mix(), seed=1)
    same = [simulate(found, BUSY, AMPLE, ONE_EACH, seed=4).first_tokens() for _ in range(2)]
    assert same[0] == same[1]
    assert same[0] != simulate(found, BUSY, AMPLE, ONE_EACH, seed=5).first_tokens()


def test_a_request_alone_takes_the_sum_of_its_parts() -> None:
    measured = replace_spread(BUSY)
    [request] = simulate([Arrival(1.0, "a", 10, 5)], measured, AMPLE, ONE_EACH).requests
    prefill = measured.llama.step(0, 10)
    assert request.first_token == pytest.approx(0.01 + (0.05 + 0.2) + (0.02 + 0.1) + prefill + 0.01)


def replace_spread(measured: StageTimes) -> StageTimes:
    return measured.model_copy(update={"vision": measured.vision.model_copy(update={"spread": 0.0})})


def test_equal_pictures_are_encoded_once_until_they_are_forgotten() -> None:
    measured = replace_spread(BUSY)
    limits = replace(AMPLE, terms=Terms(cache_seconds=10.0))
    shown = [Arrival(at, "a", 1, 1) for at in (0.0, 0.1, 5.0, 14.0, 25.0)]
    outcome = simulate(shown, measured, limits, ONE_EACH)
    # The second joins the first, the third and fourth find the tokens, and the fifth comes 11 s after their last use.
    assert outcome.busy["vision"] == pytest.approx(2 * 0.2)


class _Steps:
    """An engine without leaps: every step by itself, in the plainest way."""

    def __init__(self, measured: StageTimes, limits: EngineLimits) -> None:
        self._times, self._limits = measured.llama, limits

    def run(self, found: list[Arrival]) -> list[tuple[float, float]]:
        """(first token, end) of each arrival, in seconds."""
        coming, waiting, running, now = list(enumerate(found)), list[int](), dict[int, int](), 0.0
        prompts = {number: arrival.prompt_tokens for number, arrival in coming}
        first, ends = dict[int, float](), dict[int, float]()
        beginning: list[int] = []  # at most one whose prompt is not complete
        while coming or waiting or running or beginning:
            if not (waiting or running or beginning):
                now = max(now, coming[0][1].at)
            while coming and coming[0][1].at <= now:
                waiting.append(coming.pop(0)[0])
            budget, chosen = self._limits.prefill_tokens, dict[int, int]()
            while budget and (beginning or (waiting and len(running) + len(chosen) < self._limits.slots)):
                number = beginning.pop() if beginning else waiting.pop(0)
                chosen[number] = min(budget, prompts[number])
                budget -= chosen[number]
                prompts[number] -= chosen[number]
                if prompts[number]:
                    beginning.append(number)
                    break
            now += self._times.step(len(running), sum(chosen.values()))
            running = {number: left - 1 for number, left in running.items()}
            for number in chosen:
                if not prompts[number]:
                    first[number], running[number] = now, found[number].answer_tokens - 1
            ends |= {number: now for number, left in running.items() if not left}
            running = {number: left for number, left in running.items() if left}
        return [(first[number], ends[number]) for number in range(len(found))]


class _Heard:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.first: dict[Request, float] = {}
        self.ends: dict[Request, float] = {}

    def first_token(self, request: Request) -> None:
        self.first[request] = self._clock.now

    def finished(self, request: Request) -> None:
        self.ends[request] = self._clock.now

    def expired(self, request: Request) -> None:
        raise AssertionError("nothing has a deadline here")


@settings(max_examples=150, deadline=None)
@given(arrivals, st.integers(1, 5), st.integers(5, 60))
def test_leaps_of_the_engine_end_where_single_steps_do(found: list[Arrival], slots: int, budget: int) -> None:
    limits, clock = EngineLimits(slots=slots, prefill_tokens=budget), Clock()
    engine, heard = Engine(clock, BUSY.llama, limits), _Heard(clock)
    requests = [Request(arrival, arrival.prompt_tokens) for arrival in found]
    for request in requests:
        clock.at(request.arrival.at, lambda request=request: engine.submit(request, heard))
    clock.run()
    stepwise = _Steps(BUSY, limits).run(found)
    assert [heard.first[request] for request in requests] == pytest.approx([one[0] for one in stepwise])
    assert [heard.ends[request] for request in requests] == pytest.approx([one[1] for one in stepwise])


def test_a_new_replica_gets_its_first_call_when_a_connection_ends() -> None:
    """Between its start and that moment it is of no use."""
    measured = times(
        llama={"step_seconds": {1: 0.05}, "prefill_seconds": {1: 0.05}, "start_seconds": 5.0, "around_seconds": 0.0}
    )
    limits = replace(AMPLE, engine=EngineLimits(slots=1, waiting=10**6))
    instantly = Direction(0.0, (Policy("Pods", 10, 15.0),))
    scaler = ScalerSettings((Metric("ziya_llama_waiting", 1.0),), 1, 2, instantly, Direction(9999.0, ()))
    found = poisson(steady(30.0), 30.0, 300.0, Mix(0.0, 0.0, 1, 1, varied=False), seed=2)
    waits = []
    for age in (300.0, 30.0):
        scaling = Scaling({"llama": scaler}, 15.0, Connections(age, 5.0))
        outcome = simulate(found, measured, limits, ONE_EACH, scaling=scaling, seed=3)
        assert outcome.changes["llama"][-1][1:] == (2, 2)
        assert outcome.changes["llama"][-1][0] < 45
        waits.append(max(request.waits["llama"] for request in outcome.requests))
    assert waits[1] < waits[0] / 2


FOUND = [(1000.0, 30.0, 1100.0), (20.0, 30.0, 30.0), (20.0, 5.0, 22.0)]


@dataclass(eq=False)
class _Idle:
    busy_seconds: float = 0.0
    retired: bool = False


@pytest.mark.parametrize(("age", "resolve", "found_by"), FOUND)
def test_the_dns_is_asked_when_a_connection_ends_but_not_too_often(age: float, resolve: float, found_by: float) -> None:
    """As a channel of gRPC 1.85 did with real servers and a DNS server of one's own: after 30 s where connections lived
    for 20, and not within 70 s where they lived for 1000."""
    clock = Clock()
    fleet: Fleet[_Idle] = Fleet(clock, _Idle, start_seconds=5.0, count=1)
    routes = Routes(clock, fleet, Connections(age, resolve), np.random.default_rng(1))
    called: list[tuple[float, _Idle]] = []
    for moment in range(12_000):
        clock.at(moment / 10, lambda: routes.call(lambda replica: called.append((clock.now, replica))))
    fleet.resize(2)
    clock.run(until=1199.9)
    first = min(at for at, replica in called if replica is fleet.all[1])
    assert 0.9 * found_by - 0.2 <= first <= found_by + 0.2
    fleet.resize(1)
    called.clear()
    clock.at(1200.0, lambda: routes.call(lambda replica: called.append((clock.now, replica))))
    clock.run(until=1200.0)
    assert [replica for _, replica in called] == [fleet.all[0]]


def test_from_zero_requests_wait_for_the_first_replica() -> None:
    measured = times(vision={"start_seconds": 5.0})
    free = Direction(0.0, (Policy("Pods", 10, 15.0),))
    wakes = ("ziya_gateway_in_flight",)
    scaler = ScalerSettings((), 0, 2, free, free, activation=True, poll=15.0, cooldown=60.0, wakers=wakes)
    found = [Arrival(100.0, "a", 1, 1), Arrival(400.0, "b", 1, 1)]
    scaling = Scaling({"vision": scaler}, 15.0, Connections(30.0))
    outcome = simulate(found, measured, AMPLE, {**ONE_EACH, "vision": 0}, scaling=scaling, seed=1)
    assert [request.outcome for request in outcome.requests] == ["answered", "answered"]
    # a scrape, a poll and the start at most; and between the two it slept again
    assert all(5.0 <= request.first_token <= 15 + 15 + 5 + 0.1 for request in outcome.requests)
    assert [wanted for _, wanted, _ in outcome.changes["vision"]][:5] == [0, 1, 1, 0, 1]


def test_the_programs_have_the_bounds_that_are_simulated() -> None:
    def default(settings: type[ProcessSettings], name: str) -> int:
        return int(settings.model_fields[name].default)

    limits = Limits()
    assert limits.terms.max_in_flight == default(GatewaySettings, "gateway_max_in_flight")
    assert limits.vision_max_batch == default(VisionSettings, "vision_max_batch")
    assert limits.qformer_max_batch == default(QFormerSettings, "qformer_max_batch")
    assert limits.max_queue == default(VisionSettings, "vision_max_queue")
    assert limits.max_queue == default(QFormerSettings, "qformer_max_queue")
    assert limits.bus_max_backlog == default(ProcessSettings, "bus_max_backlog")
    assert limits.bus_reads == BATCHES_UNDER_WAY
    assert limits.terms.cache_seconds == default(ProcessSettings, "tokens_ttl")
    assert limits.request_timeout == default(ProcessSettings, "request_timeout")
    assert limits.engine.slots == default(LlamaSettings, "llama_max_running")
    assert limits.engine.waiting == default(LlamaSettings, "llama_max_waiting")
    assert limits.engine.prefill_tokens == PREFILL_TOKENS["cpu"]


def test_the_shipped_times_can_be_used() -> None:
    shipped = StageTimes.load(SHIPPED)
    assert shipped.measured["where"]
    found = poisson(steady(5.0), 5.0, 20.0, Mix(), seed=1)
    assert simulate(found, shipped, Limits(), ONE_EACH).count("answered") == len(found)
