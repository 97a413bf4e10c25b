"""When requests are sent in an open loop: at a rate, whatever becomes of the ones before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

Pattern = Literal["constant", "poisson", "gamma"]


def send_times(rate: float, pattern: Pattern, burstiness: float, seed: int) -> Iterator[float]:
    """Seconds from the start, without end, `rate` a second on average; the first is one interval after the start.

    Intervals are equal (constant), exponential (poisson: independent users) or gamma distributed with shape
    `burstiness`: 1 is poisson, less comes in bursts, more is more even. The coefficient of variation of the intervals
    is 1 / sqrt(burstiness).
    """
    draw = np.random.default_rng(seed)
    shape = {"poisson": 1.0, "gamma": burstiness}.get(pattern, 0.0)
    at = 0.0
    while True:
        at += 1 / rate if pattern == "constant" else float(draw.gamma(shape, 1 / (rate * shape)))
        yield at
