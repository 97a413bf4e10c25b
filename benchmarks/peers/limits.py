"""What this machine's memory and processor give at best, measured beside the engines and asked like one.

Memory: reading a gigabyte, far more than the caches hold. Arithmetic: one large matrix product, in bfloat16 or, on a
processor without instructions for it, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.peers.answering import Setting, answer
from benchmarks.peers.numbers import quicker_numbers, shortest

BYTES = 1 << 30
SIZE = 2048


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
            bytes=BYTES / shortest(self._memory.sum),
            operations=2 * SIZE**3 / shortest(lambda: self._matrix @ self._matrix),
            numbers=str(self._matrix.dtype).removeprefix("torch."),
        )

    def close(self) -> None:
        pass


if __name__ == "__main__":
    answer(Limits)
