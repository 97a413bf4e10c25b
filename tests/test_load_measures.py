"""The arithmetic from answers to figures, on times whose result is known by hand."""

from __future__ import annotations

import pytest

from cli.load.measures import ErrorKind, Goodput, Spread, spread, summarise
from cli.load.report import lines
from cli.load.slo import Objective
from cli.text import CommandError
from tests.load import answered, failed


def test_percentiles_of_a_hundred_and_one_times() -> None:
    """0 to 100: each percentile is its own number. In no order, as times come."""
    times = [float(n * 37 % 101) for n in range(101)]
    assert spread(times) == Spread(101, 50.0, 0.0, 50.0, 90.0, 95.0, 99.0, 100.0)


def test_percentiles_lie_between_the_nearest_two() -> None:
    found = spread([1.0, 2.0])
    assert found is not None
    assert (found.p50, found.p90, found.p99) == pytest.approx((1.5, 1.9, 1.99))
    assert spread([]) is None


def test_latencies_count_from_when_a_request_was_due() -> None:
    found = summarise([answered([3.5, 4.0, 4.25], 5.0, intended=2.0, sent=3.0, tokens=3)], 5.0)
    assert found.ttft is not None
    assert found.ttft.p50 == 1.5
    assert found.itl is not None
    assert (found.itl.count, found.itl.mean, found.itl.most) == (2, 0.375, 0.5)
    assert found.tpot is not None
    assert found.tpot.p50 == 0.375
    assert found.e2e is not None
    assert found.e2e.p50 == 3.0
    assert found.send_lag is not None
    assert found.send_lag.p50 == 1.0


def test_a_piece_of_several_tokens_counts_for_all_of_them() -> None:
    found = summarise([answered([1.0, 3.0], 4.0, tokens=5)], 4.0)
    assert (found.tokens.completion, found.tokens.pieces, found.tokens_per_second) == (5, 2, 1.25)
    assert found.tpot is not None
    assert found.tpot.p50 == 0.5
    assert found.itl is not None
    assert found.itl.p50 == 2.0


def test_an_answer_in_one_piece_tells_nothing_of_its_pace() -> None:
    found = summarise([answered([1.0], 1.0, tokens=5)], 1.0)
    assert (found.itl, found.tpot) == (None, None)


@pytest.mark.parametrize(
    ("tokens", "completion", "told"),
    [((4, 6), 10, "usage"), ((None, None), 4, "pieces"), ((4, None), 6, "usage of 1, pieces of the others")],
)
def test_where_tokens_are_counted_from_is_said(tokens: tuple[int | None, ...], completion: int, told: str) -> None:
    found = summarise([answered([1.0, 2.0], 2.0, tokens=count) for count in tokens], 2.0)
    assert (found.tokens.completion, found.tokens.counted_from) == (completion, told)
    assert any(told in line for line in lines(found, open_loop=False))


def test_failures_are_counted_by_kind_and_are_in_no_figure() -> None:
    bad = [
        failed("http 429", "first busy", pieces=[0.1, 9.0], ended=9.0),
        failed("broken", "cut", pieces=[0.1]),
        failed("http 429", "second busy"),
    ]
    found = summarise([answered([1.0, 2.0], 2.0, tokens=2), *bad], 10.0)
    assert (found.started, found.succeeded, found.failed, found.unfinished) == (4, 1, 3, 0)
    assert found.errors == (ErrorKind("http 429", 2, "first busy"), ErrorKind("broken", 1, "cut"))
    assert (found.requests_per_second, found.tokens_per_second, found.tokens.pieces) == (0.1, 0.2, 2)
    assert found.ttft is not None
    assert (found.ttft.count, found.ttft.most) == (1, 1.0)
    assert found.itl is not None
    assert found.itl.count == 1


def test_goodput_is_of_those_who_keep_every_limit_over_all_that_ended() -> None:
    objective = Objective.parse("ttft=500ms, itl=0.1s,e2e=2s")
    good = answered([0.5, 0.6, 0.7], 2.0)
    late = answered([0.51, 0.6], 0.7)
    slow = answered([0.1, 0.15, 0.35], 0.5)  # gaps of 0.05 and 0.2: a mean of 0.125
    long = answered([0.1, 0.2], 2.1)
    single = answered([0.2], 0.3)
    found = summarise([good, late, slow, long, single, failed("timeout", "late")], 4.0, objective)
    assert found.goodput == Goodput({"ttft": 0.5, "itl": 0.1, "e2e": 2.0}, 2, 2 / 6, 0.5)


def test_an_objective_may_be_of_the_time_per_token() -> None:
    objective = Objective.parse("tpot=50ms")
    assert objective.met(answered([1.0, 1.2], 1.2, tokens=5))
    assert not objective.met(answered([1.0, 1.2], 1.2))
    assert not objective.met(failed("broken", "cut"))


@pytest.mark.parametrize("text", ["", "ttft", "ttft=", "ttft=soon", "speed=1s", "ttft=-1s", "ttft=500"])
def test_an_objective_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(CommandError, match="--slo"):
        Objective.parse(text)


def test_stages_come_in_the_order_in_which_a_request_meets_them() -> None:
    answer = answered([1.0], 1.0)
    answer.stages = {"total": 1.0, "decode": 0.5, "admission": 0.25}
    found = summarise([answer, answered([1.0], 1.0)], 1.0)
    assert list(found.stages) == ["admission", "decode", "total"]
    assert found.stages["decode"].count == 1


def test_what_a_person_reads() -> None:
    objective = Objective.parse("ttft=2s")
    answers = [answered([1.0, 1.5], 2.0, tokens=2), failed("http 429", "too busy")]
    text = "\n".join(lines(summarise(answers, 4.0, objective), objective=str(objective), open_loop=True))
    assert "1 of 2 answered, 1 failed, in 4.00 s" in text
    assert "goodput      0.25 requests/s: 1 of 2 (50%) within ttft 2000 ms" in text
    assert "1 × http 429: too busy" in text
    assert "sent later than intended" in text
    assert "sent later" not in "\n".join(lines(summarise(answers, 4.0), open_loop=False))
