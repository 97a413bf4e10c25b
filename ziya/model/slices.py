"""A batch cut into slices, one for each processor, where it holds as many items; else all processors share the whole.

Threads that compute one operator together wait for each other after it, and a forward pass has hundreds: where others
want the processors too, one that was put aside holds up the rest each time. Slices wait for nothing until their end.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch
from numpy.typing import NDArray

Array = NDArray[Any]


class Slices:
    """To be made and called on one thread. With one thread, or on a GPU, a batch stays whole."""

    def __init__(self, threads: int, device: str = "cpu") -> None:
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        if threads > 1 and device == "cpu":
            self._pool = ThreadPoolExecutor(threads, "slice", initializer=_compute_with, initargs=(1,))
        _compute_with(threads)

    def run(self, model: Callable[..., Array], *arguments: Any) -> list[Array]:
        """What `model` answers for each item; every argument is a list or an array with one entry for each."""
        items = len(arguments[0])
        if self._pool is None or items < self._threads:
            return list(model(*arguments))
        cuts = [items * part // self._threads for part in range(self._threads + 1)]
        slices = [[argument[a:b] for argument in arguments] for a, b in pairwise(cuts)]
        return [answer for part in self._pool.map(lambda part: model(*part), slices) for answer in part]


def _compute_with(threads: int) -> None:
    """How many threads an operator takes that is called on this thread."""
    torch.get_num_threads()  # A thread's first question would else set the number back.
    torch.set_num_threads(threads)
