"""What this machine's memory and processor give at best, measured beside the engines and asked like one.

Memory: reading a gigabyte, far more than the caches hold. Arithmetic: one large matrix product, in bfloat16 or, on a
processor without instructions for it, in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.peers.answering import Setting, answer

BYTES = 1 << 30
SIZE, TRIAL_SIZE = 2048, 256
REPEATS = 5


@dataclass(frozen=True)
class Rates:
    """The best of some repeats: bytes and operations a second, and the numbers that those were done on."""

    bytes: float
    operations: float
    numbers: str


class Limits:
    def __init__(self, setting: Setting) -> None:
        torch.set_num_threads(setting.threads)
        self._memory = torch.ones(BYTES // 4)
        self._matrix = torch.randn(SIZE, SIZE).to(quicker_numbers())

    def round(self, requests: range) -> Rates:
        return Rates(
            bytes=BYTES / _shortest(self._memory.sum),
            operations=2 * SIZE**3 / _shortest(lambda: self._matrix @ self._matrix),
            numbers=str(self._matrix.dtype).removeprefix("torch."),
        )

    def close(self) -> None:
        pass


def quicker_numbers() -> torch.dtype:
    """float32 on a processor that has no instructions for bfloat16."""

    def seconds(numbers: torch.dtype) -> float:
        matrix = torch.randn(TRIAL_SIZE, TRIAL_SIZE).to(numbers)
        return _shortest(lambda: matrix @ matrix)

    return min((torch.bfloat16, torch.float32), key=seconds)


def _shortest(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    answer(Limits)
