"""The loads that scaler settings are tried with: a step, a day in half an hour, bursts; or what was recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cli.capacity.arrivals import Arrival, Mix, Rate, bursts, poisson, ramp, read_trace

MIX = Mix(image_share=0.8, reuse=0.3, prompt_tokens=64, answer_tokens=128)


@dataclass(frozen=True)
class Trace:
    """`arrivals` of a seed, for `seconds`."""

    name: str
    seconds: float
    arrivals: Callable[[int], list[Arrival]]


def made(name: str, rate: Rate, peak: float, seconds: float) -> Trace:
    """`rate` in requests a second, at most `peak`."""
    return Trace(name, seconds, partial(poisson, rate, peak, seconds, MIX))


def step(low: float, high: float, begins: float, ends: float, seconds: float) -> Trace:
    return made("step", lambda at: high if begins <= at < ends else low, high, seconds)


def recorded(path: Path) -> Trace:
    """Raises CommandError when the file cannot be used."""
    arrivals = read_trace(path)
    return Trace(path.stem, arrivals[-1].at, lambda _: arrivals)


TRACES = (
    step(10.0, 60.0, 180.0, 900.0, 1500.0),
    made("day", ramp(5.0, 60.0, 1800.0), 60.0, 1800.0),
    made("bursts", bursts(10.0, 60.0, 300.0, 0.25), 60.0, 1500.0),
)
