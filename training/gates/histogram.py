"""Counts of a measured value in fixed bins, so that the histograms of two shards can be added."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class Histogram:
    """`edges` are the borders between bins, ascending: values below the first and from the last on have bins too.

    `total` is the sum of the values in millionths: whole numbers add up to the same in any order.
    """

    edges: tuple[float, ...]
    counts: list[int]
    total: int = 0

    @classmethod
    def over(cls, edges: Sequence[float]) -> Histogram:
        """An empty one with len(edges) + 1 bins."""
        return cls(tuple(edges), [0] * (len(edges) + 1))

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def mean(self) -> float:
        return self.total / 1e6 / self.count if self.count else 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_right(self.edges, value)] += 1
        self.total += round(value * 1e6)

    def merge(self, other: Histogram) -> None:
        """Raises ValueError when the bins are others."""
        if other.edges != self.edges:
            raise ValueError(f"histograms over {self.edges} and {other.edges} cannot be added")
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def state(self) -> dict[str, Any]:
        return {"edges": list(self.edges), "counts": list(self.counts), "total": self.total}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Histogram:
        return cls(tuple(state["edges"]), [int(count) for count in state["counts"]], int(state["total"]))
