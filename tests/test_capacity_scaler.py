"""The HPA's decisions against cases worked by hand from Kubernetes' documentation, and KEDA's way to and from zero."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.capacity.scaler import Activation, Autoscaler, Direction, Metric, Policy, ScalerSettings

AT_ONCE = Direction(0.0, (Policy("Percent", 1000, 15.0),))
FREELY_DOWN = Direction(0.0, (Policy("Percent", 100, 15.0),))
# As the chart has it: up at once and at most double or two, down one a minute after five minutes.
CHART_UP = Direction(0.0, (Policy("Percent", 100, 15.0), Policy("Pods", 2, 15.0)))
CHART_DOWN = Direction(300.0, (Policy("Pods", 1, 60.0),))


def settings(
    *metrics: Metric, up: Direction = AT_ONCE, down: Direction = FREELY_DOWN, minimum: int = 1, maximum: int = 100
) -> ScalerSettings:
    return ScalerSettings(metrics or (Metric("load", 1.0),), minimum, maximum, up, down)


@pytest.mark.parametrize(
    ("replicas", "average", "target", "wanted"),
    [
        (4, 200.0, 100.0, 8),  # twice the target doubles
        (4, 50.0, 100.0, 2),  # half of it halves
        (50, 90.0, 75.0, 60),  # the documentation's own example of the tolerance: 20 % are above it
        (50, 75.0, 75.0, 50),
        (10, 109.0, 100.0, 10),  # within 10 %
        (10, 91.0, 100.0, 10),
        (10, 111.0, 100.0, 12),  # above: 11.1 is rounded up
        (10, 89.0, 100.0, 9),  # 8.9 too
        (3, 0.0, 100.0, 1),  # never below the minimum
        (90, 200.0, 100.0, 100),  # nor above the maximum
    ],
)
def test_the_ratio_decides(replicas: int, average: float, target: float, wanted: int) -> None:
    scaler = Autoscaler(settings(Metric("load", target)))
    assert scaler.decide(0.0, replicas, {"load": average * replicas}) == wanted


def test_a_whole_number_of_replicas_is_not_rounded_up() -> None:
    scaler = Autoscaler(settings(Metric("load", 0.1)))
    assert scaler.decide(0.0, 1, {"load": 0.1 + 0.1 + 0.1}) == 3


def test_the_metric_that_asks_for_most_counts_and_a_missing_one_does_not() -> None:
    scaler = Autoscaler(settings(Metric("waiting", 4.0), Metric("kv", 0.8), Metric("unseen", 1.0)))
    assert scaler.decide(0.0, 2, {"waiting": 4.0, "kv": 4.8}) == 6


def test_without_any_metric_nothing_changes() -> None:
    assert Autoscaler(settings()).decide(0.0, 7, {}) == 7


def run(scaler: Autoscaler, replicas: int, loads: Sequence[float], period: float = 15.0) -> list[int]:
    """Replicas after each round, when what was asked for is there at once."""
    found = []
    for number, load in enumerate(loads):
        replicas = scaler.decide(number * period, replicas, {"load": load})
        found.append(replicas)
    return found


def test_up_as_the_chart_has_it_the_more_generous_policy_counts() -> None:
    scaler = Autoscaler(settings(up=CHART_UP))
    # two more from one, then double: 1 -> 3 -> 6 -> 12 -> 20
    assert run(scaler, 1, [20.0] * 5) == [3, 6, 12, 20, 20]


def test_a_period_counts_what_changed_in_it() -> None:
    scaler = Autoscaler(settings(up=Direction(0.0, (Policy("Pods", 4, 60.0),))))
    assert run(scaler, 1, [50.0] * 9) == [5, 5, 5, 5, 9, 9, 9, 9, 13]


def test_down_by_a_tenth_or_four_as_in_the_documentation() -> None:
    """80 replicas, 10 wanted: a tenth at first, and from 40 on four pods are more than a tenth."""
    down = Direction(0.0, (Policy("Pods", 4, 60.0), Policy("Percent", 10, 60.0)))
    found = run(Autoscaler(settings(down=down)), 80, [10.0] * 15, period=60.0)
    assert found == [72, 64, 57, 51, 45, 40, 36, 32, 28, 24, 20, 16, 12, 10, 10]


def test_down_waits_for_the_window_and_then_goes_one_by_one() -> None:
    scaler = Autoscaler(settings(up=CHART_UP, down=CHART_DOWN))
    found = run(scaler, 4, [4.0] * 4 + [0.0] * 40)
    # the last round that wanted 4 was at 45 s; 300 s later, and then each minute
    assert found.index(3) * 15 == 345
    assert found.index(2) * 15 == 405
    assert found.index(1) * 15 == 465


def test_a_short_lull_takes_nothing_away() -> None:
    scaler = Autoscaler(settings(up=CHART_UP, down=CHART_DOWN))
    assert set(run(scaler, 4, [4.0, *[0.0] * 19, 4.0, *[0.0] * 19])) == {4}


def test_a_fresh_scaler_keeps_what_it_finds_for_a_window() -> None:
    assert run(Autoscaler(settings(down=CHART_DOWN)), 5, [0.0] * 20) == [5] * 20


loads = st.lists(st.floats(0, 200), min_size=1, max_size=60)


@given(loads, st.integers(1, 20))
def test_never_out_of_bounds_nor_faster_than_allowed(load: list[float], first: int) -> None:
    scaler = Autoscaler(settings(up=CHART_UP, down=CHART_DOWN, minimum=1, maximum=20))
    found = [first, *run(scaler, first, load)]
    for before, after in pairwise(found):
        assert 1 <= after <= 20
        assert after <= max(2 * before, before + 2)
        assert after >= before - 1


@given(loads)
def test_it_never_goes_below_what_was_wanted_in_the_window(load: list[float]) -> None:
    scaler = Autoscaler(settings(up=AT_ONCE, down=CHART_DOWN, maximum=200))
    found = run(scaler, 1, load)
    for number, replicas in enumerate(found):
        lately = load[max(0, number - 19) : number + 1]
        # a tenth is tolerance, and no more than ten times as many at once
        assert replicas >= min(0.9 * max(lately) - 1, 11)


def test_keda_wakes_and_lets_sleep() -> None:
    woken = ScalerSettings((), 0, 8, AT_ONCE, FREELY_DOWN, activation=True, cooldown=300.0, wakers=("in_flight",))
    activation = Activation(woken, 0.0)
    assert activation.decide(0.0, 0, {"in_flight": 0.0}) == 0
    assert activation.decide(15.0, 0, {"in_flight": 1.0}) == 1
    assert activation.decide(30.0, 3, {"in_flight": 0.0}) == 3
    assert activation.decide(314.0, 1, {"in_flight": 0.0}) == 1  # 299 s after it was last active
    assert activation.decide(315.0, 1, {"in_flight": 0.0}) == 0


def test_keda_never_takes_the_last_replica_where_one_is_the_minimum() -> None:
    kept = ScalerSettings((), 1, 8, AT_ONCE, FREELY_DOWN, activation=True, wakers=("in_flight",))
    assert Activation(kept, 0.0).decide(10_000.0, 1, {"in_flight": 0.0}) == 1
