"""Which tokens a request's penalties count, in arrays that only grow: a step must not read a long prompt again."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

FIRST_ROOM = 64


class Tally:
    """Each token seen, once, and how often it was generated."""

    def __init__(self) -> None:
        self._ids = np.zeros(FIRST_ROOM, dtype=np.int64)
        self._generated = np.zeros(FIRST_ROOM, dtype=np.float32)
        self._place: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._place)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """int64 [seen], in the order of their first time."""
        return self._ids[: len(self._place)]

    @property
    def generated(self) -> npt.NDArray[np.float32]:
        """float32 [seen]: how often each of `ids` was generated; 0 for what only the prompt holds."""
        return self._generated[: len(self._place)]

    def saw(self, tokens: Iterable[int]) -> None:
        """Tokens of the prompt."""
        for token in tokens:
            self._find(token)

    def count(self, token: int) -> None:
        """A generated token."""
        place = self._find(token)  # which may put a larger array in the place of the old
        self._generated[place] += 1

    def _find(self, token: int) -> int:
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
            self._generated = np.concatenate((self._generated, np.zeros_like(self._generated)))
        self._ids[place] = token
        return place
