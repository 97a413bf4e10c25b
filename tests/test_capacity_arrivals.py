"""Arrivals made from a seed have the rate and mix that were asked for; traces are read, or refused with their line."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import pytest

from cli.capacity.arrivals import Arrival, Mix, bursts, poisson, ramp, read_trace, steady
from cli.text import CommandError


def test_steady_arrivals_are_a_poisson_process() -> None:
    found = poisson(steady(20.0), 20.0, 1000.0, Mix(), seed=1)
    gaps = [after.at - before.at for before, after in pairwise(found)]
    assert mean(gaps) == pytest.approx(0.05, rel=0.03)
    assert stdev(gaps) == pytest.approx(0.05, rel=0.03)
    assert found[0].at >= 0
    assert found[-1].at < 1000


def test_the_mix_is_what_was_asked_for() -> None:
    found = poisson(steady(20.0), 20.0, 1000.0, Mix(0.8, 0.3, 64, 128), seed=1)
    shown = [arrival.image for arrival in found if arrival.image is not None]
    assert len(shown) / len(found) == pytest.approx(0.8, abs=0.02)
    assert 1 - len(set(shown)) / len(shown) == pytest.approx(0.3, abs=0.02)
    assert mean(arrival.prompt_tokens for arrival in found) == pytest.approx(64, rel=0.03)
    assert mean(arrival.answer_tokens for arrival in found) == pytest.approx(128, rel=0.03)
    assert min(arrival.answer_tokens for arrival in found) >= 1


def test_lengths_that_do_not_vary() -> None:
    found = poisson(steady(5.0), 5.0, 20.0, Mix(0.0, 0.0, 7, 9, varied=False), seed=1)
    assert {(arrival.image, arrival.prompt_tokens, arrival.answer_tokens) for arrival in found} == {(None, 7, 9)}


def test_bursts_and_ramps_have_their_rate_at_each_time() -> None:
    burst = poisson(bursts(2.0, 30.0, 100.0, 0.25), 30.0, 1000.0, Mix(), seed=1)
    high = sum(arrival.at % 100 >= 75 for arrival in burst)
    assert high / 250 == pytest.approx(30, rel=0.05)
    assert (len(burst) - high) / 750 == pytest.approx(2, rel=0.1)
    day = poisson(ramp(2.0, 30.0, 1000.0), 30.0, 1000.0, Mix(), seed=1)
    assert sum(450 <= arrival.at < 550 for arrival in day) / 100 == pytest.approx(30, rel=0.1)
    assert sum(arrival.at < 50 for arrival in day) / 50 == pytest.approx(2, abs=1)


def test_the_same_seed_gives_the_same_arrivals() -> None:
    assert poisson(steady(5.0), 5.0, 50.0, Mix(), 3) == poisson(steady(5.0), 5.0, 50.0, Mix(), 3)
    assert poisson(steady(5.0), 5.0, 50.0, Mix(), 3) != poisson(steady(5.0), 5.0, 50.0, Mix(), 4)


EXPECTED = [Arrival(0.5, "a", 5, 6), Arrival(1.0, None, 7, 8), Arrival(2.0, "a", 5, 6)]


def test_a_csv_trace_is_read_in_order_of_time(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("seconds,image,prompt_tokens,answer_tokens\n2,a,5,6\n0.5,a,5,6\n1,,7,8\n")
    assert read_trace(trace) == EXPECTED


def test_a_trace_of_json_lines_is_the_same(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        '{"seconds": 2, "image": "a", "prompt_tokens": 5, "answer_tokens": 6}\n\n'
        '{"seconds": 0.5, "image": "a", "prompt_tokens": 5, "answer_tokens": 6}\n'
        '{"seconds": 1, "prompt_tokens": 7, "answer_tokens": 8}\n'
    )
    assert read_trace(trace) == EXPECTED


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seconds,prompt_tokens,answer_tokens\n", "has no requests"),
        ("seconds,prompt_tokens\n1,2\n", "line 2 of .* needs the numbers"),
        ("seconds,prompt_tokens,answer_tokens\n1,2,3\n1,x,3\n", "line 3 of .* needs the numbers"),
        ("seconds,prompt_tokens,answer_tokens\n-1,2,3\n", "line 2 of .* at least 0"),
        ("seconds,prompt_tokens,answer_tokens\ninf,2,3\n", "line 2 of .* at least 0"),
        ("seconds,prompt_tokens,answer_tokens\n1,2,0\n", "line 2 of .* at least 1"),
        ('{"seconds": 1', "line 1 of .* is not JSON"),
        ('{"seconds": 1}\n', "line 1 of .* needs the numbers"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    trace = tmp_path / "trace"
    trace.write_text(text)
    with pytest.raises(CommandError, match=sentence):
        read_trace(trace)


def test_a_trace_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="cannot read the trace"):
        read_trace(tmp_path / "nowhere.csv")
