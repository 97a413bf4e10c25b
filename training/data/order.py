"""In which order a source's samples come: shuffled, epoch after epoch, and yet few shards at a time.

Per epoch the shards are shuffled and cut in windows of a few; samples are shuffled within a window. Reading in this
order goes through each shard once an epoch, so a stream from afar needs room for one window only. The k-th draw
is worked out from the seed and k alone: nothing has to be replayed to go on in the middle of an epoch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import BadData

# What a permutation is for: keeps the streams of random numbers apart.
_SHARDS, _SAMPLES = 1, 2


def permutation(length: int, *words: int) -> NDArray[np.int64]:
    """A random order of `length` things, fixed by whole numbers.

    Sorts raw numbers of the bit generator: unlike numpy's own shuffles, they are promised never to change.
    """
    source = np.random.PCG64(np.random.SeedSequence([word & (2**64 - 1) for word in words]))
    return np.argsort(source.random_raw(length), kind="stable")


@dataclass(frozen=True)
class _Epoch:
    """The shuffled shards of an epoch, and after how many draws each window begins."""

    shards: NDArray[np.int64]
    starts: tuple[int, ...]


class EpochOrder:
    """See the module. Every epoch is a permutation of all samples."""

    def __init__(self, shard_sizes: Sequence[int], seed: int, window_shards: int = 8) -> None:
        if window_shards < 1:
            raise ValueError(f"a window must have at least one shard, not {window_shards}")
        self.shard_sizes, self.seed, self.window_shards = tuple(shard_sizes), seed, window_shards
        self._sizes = np.array(self.shard_sizes, np.int64)
        self._first = np.concatenate([[0], np.cumsum(self._sizes)]).astype(np.int64)
        self.samples = int(self._first[-1])
        if self.samples < 1:
            raise BadData("a dataset without samples has no order")
        self._epoch = lru_cache(2)(self._order_shards)
        self._window = lru_cache(2)(self._order_window)

    def __reduce__(self) -> tuple[Any, ...]:
        return EpochOrder, (self.shard_sizes, self.seed, self.window_shards)

    def item(self, k: int) -> tuple[int, int]:
        """Item and epoch of the source's k-th draw."""
        number, place = divmod(k, self.samples)
        starts = self._epoch(number).starts
        window = bisect_right(starts, place) - 1
        return int(self._window(number, window)[place - starts[window]]), number

    def _order_shards(self, epoch: int) -> _Epoch:
        shards = permutation(len(self._sizes), self.seed, epoch, _SHARDS)
        before = np.concatenate([[0], np.cumsum(self._sizes[shards])])
        return _Epoch(shards, tuple(before[: len(shards) : self.window_shards].tolist()))

    def _order_window(self, epoch: int, window: int) -> NDArray[np.int64]:
        begin = window * self.window_shards
        shards = self._epoch(epoch).shards[begin : begin + self.window_shards]
        items = np.concatenate([np.arange(self._first[shard], self._first[shard + 1]) for shard in shards])
        return items[permutation(len(items), self.seed, epoch, _SAMPLES, window)]
