"""Elements of one list that belong to elements of another: a picture's captions, a question's answers.

The join is two arrays of whole numbers, sorted; nothing but them is kept in memory.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class Groups:
    """`of(key)` gives the numbers, in order, at which `keys` had `key`."""

    def __init__(self, keys: Iterable[int]) -> None:
        key_M = np.fromiter(keys, np.int64)
        self._order: NDArray[np.int64] = np.argsort(key_M, kind="stable")
        self._sorted = key_M[self._order]

    def of(self, key: int) -> list[int]:
        start, end = np.searchsorted(self._sorted, [key, key + 1])
        return [int(one) for one in self._order[start:end]]

    def keys(self) -> NDArray[np.int64]:
        """Each once, smallest first."""
        found: NDArray[np.int64] = np.unique(self._sorted)
        return found
