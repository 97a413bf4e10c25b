"""Which numbers a processor multiplies faster: peers that are built on torch compute in those, as their users would."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

SIZE, REPEATS = 256, 5


def quicker_numbers() -> torch.dtype:
    """bfloat16, or float32 on a processor that has no instructions for bfloat16."""

    def seconds(numbers: torch.dtype) -> float:
        matrix = torch.randn(SIZE, SIZE).to(numbers)
        return shortest(lambda: matrix @ matrix)

    return min((torch.bfloat16, torch.float32), key=seconds)


def shortest(work: Callable[[], object]) -> float:
    """Seconds, of some repeats."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
