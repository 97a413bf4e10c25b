"""The capacity simulation against queues whose waiting times are known in closed form.

Tolerances are what luck may do to the mean of a few runs; a wrong discipline (two servers for one, say) is off by more.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from statistics import mean

import pytest

from cli.capacity.arrivals import Arrival, Mix, poisson, steady
from cli.capacity.engine import EngineLimits
from cli.capacity.journey import Terms
from cli.capacity.simulate import Limits, Outcome, simulate
from cli.capacity.stage_times import StageTimes
from tests.stage_times import AMPLE, ONE_EACH, times

REQUESTS = 30_000
SEEDS = range(3)
FRESH = Mix(image_share=1.0, reuse=0.0, prompt_tokens=1, answer_tokens=1, varied=False)


def poisson_arrivals(rate: float, seed: int, mix: Mix = FRESH) -> list[Arrival]:
    return poisson(steady(rate), rate, REQUESTS / rate, mix, seed)


def mean_wait(outcome: Outcome, stage: str) -> float:
    return mean(request.waits[stage] for request in outcome.requests)


def waited(stage: str, rate: float, measured: StageTimes, limits: Limits = AMPLE, **replicas: int) -> float:
    """The mean wait in a stage over a few seeds."""
    whole = {**ONE_EACH, **replicas}
    runs = (simulate(poisson_arrivals(rate, seed), measured, limits, whole, seed=seed) for seed in SEEDS)
    return mean(mean_wait(outcome, stage) for outcome in runs)


@pytest.mark.parametrize("utilisation", [pytest.param(0.5, marks=pytest.mark.slow), 0.8])
@pytest.mark.parametrize("spread", [0.0, pytest.param(0.5, marks=pytest.mark.slow), 1.0])
def test_one_encoder_waits_as_pollaczek_and_khinchine_say(utilisation: float, spread: float) -> None:
    service = 0.1
    measured = times(vision={"batch_seconds": {1: service}, "spread": spread})
    expected = utilisation * service * (1 + spread**2) / (2 * (1 - utilisation))
    alone = replace(AMPLE, vision_max_batch=1)
    assert waited("vision", utilisation / service, measured, alone) == pytest.approx(expected, rel=0.06)


def test_one_encoder_waits_exactly_as_lindley_says() -> None:
    """With a constant service each wait follows from the one before and the time between the two."""
    arrivals, service = poisson_arrivals(8.0, seed=1), 0.1
    measured = times(vision={"batch_seconds": {1: service}})
    outcome = simulate(arrivals, measured, replace(AMPLE, vision_max_batch=1), ONE_EACH, seed=3)
    expected = [0.0]
    for before, after in pairwise(arrivals):
        expected.append(max(0.0, expected[-1] + service - (after.at - before.at)))
    assert [request.waits["vision"] for request in outcome.requests] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("servers", "utilisation"),
    [(1, 0.6), pytest.param(2, 0.7, marks=pytest.mark.slow), pytest.param(3, 0.8, marks=pytest.mark.slow), (8, 0.8)],
)
def test_qformers_at_one_bus_wait_as_erlang_says(servers: int, utilisation: float) -> None:
    service = 0.1
    measured = times(qformer={"batch_seconds": {1: service}, "spread": 1.0})
    limits = replace(AMPLE, qformer_max_batch=1, bus_reads=1)
    found = waited("qformer", servers * utilisation / service, measured, limits, qformer=servers)
    assert found == pytest.approx(erlang_c_wait(servers, utilisation, service), rel=0.07)


def erlang_c_wait(servers: int, utilisation: float, service: float) -> float:
    """Mean wait of M/M/c: the probability of waiting (Erlang's C) over the rate at which the queue is emptied."""
    offered = servers * utilisation
    waits = offered**servers / math.factorial(servers) / (1 - utilisation)
    goes_in = sum(offered**n / math.factorial(n) for n in range(servers))
    return waits / (goes_in + waits) * service / (servers * (1 - utilisation))


def test_a_language_model_of_one_slot_is_a_queue_with_one_server() -> None:
    service, utilisation = 0.1, 0.7
    measured = times(llama={"prefill_seconds": {1: service}})
    limits = replace(AMPLE, engine=EngineLimits(slots=1, waiting=10**6, prefill_tokens=512))
    expected = utilisation * service / (2 * (1 - utilisation))
    assert waited("llama", utilisation / service, measured, limits) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize(("places", "offered"), [(5, 3.0), (20, 18.0)])
def test_a_gateway_refuses_as_erlang_says(places: int, offered: float) -> None:
    """Requests that find all places taken are lost; Erlang's B holds for any distribution of how long they stay."""
    tokens, step = 100, 0.01
    mix = Mix(image_share=0.0, prompt_tokens=1, answer_tokens=tokens, varied=False)
    measured = times(llama={"step_seconds": {1: step}, "prefill_seconds": {1: step}})
    limits = replace(AMPLE, terms=Terms(max_in_flight=places), engine=EngineLimits(slots=1000))
    # An answer ends after 100 steps, and begins half a step late on average: steps have borders.
    stays = (tokens + 0.5) * step
    arrivals = poisson_arrivals(offered / stays, 1, mix)
    refused = simulate(arrivals, measured, limits, ONE_EACH, seed=7).count("refused") / len(arrivals)
    assert refused == pytest.approx(erlang_b(places, offered), rel=0.06)


def erlang_b(places: int, offered: float) -> float:
    terms = [offered**n / math.factorial(n) for n in range(places + 1)]
    return terms[-1] / sum(terms)
