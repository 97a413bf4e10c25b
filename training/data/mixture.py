"""Which samples a step is made of: sources in their ratios, each in its own order.

A step's share of each source is what brings the source closest to its ratio of all samples drawn so far, so that
ratios hold over the whole run and not only on average. All state is the cursor: how many samples were drawn, and
how many of them from each source. It knows no processes, and a run goes on from it at once, at any place.

A source may take several samples of a record (`samples_each`, k): its n-th is then of the record whose turn is n div k.
Sources of one dataset that do so go through it in the same order, and a step puts all samples of a record side by side.
Nothing of this is in the way of the ratios: where they are not as the sources' k, the sources just drift apart. A step
or a process may end between two samples of a record; then its picture is computed on both sides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from math import floor, isfinite
from typing import Any

import numpy as np

from training.data.order import EpochOrder, permutation
from training.data.record import Draw
from training.data.shards import Dataset
from training.errors import BadConfig
from training.recipe import Source

_BATCH, _SOURCE = 3, 4


@dataclass(frozen=True)
class Cursor:
    """How many samples were drawn in all, and from each source."""

    position: int
    taken: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"position": self.position, "taken": list(self.taken)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Cursor:
        """Raises BadConfig when this is no cursor."""
        position, taken = value.get("position"), value.get("taken")
        if not isinstance(taken, list) or not all(type(one) is int and one >= 0 for one in (position, *taken)):
            raise BadConfig(f"{json.dumps(value)} is not a place in the data")
        if position != sum(taken):
            raise BadConfig(f"a place in the data at sample {position} cannot have {sum(taken)} samples of its sources")
        return cls(sum(taken), tuple(taken))


class Mixture:
    """See the module. `orders` and `digests` (of the datasets) are in the order of `sources`."""

    def __init__(
        self, sources: Sequence[Source], orders: Sequence[EpochOrder], seed: int, digests: Sequence[str] = ()
    ) -> None:
        if not sources:
            raise BadConfig("a recipe needs at least one source of data")
        for source in sources:
            if not isfinite(source.ratio) or source.ratio <= 0:
                raise BadConfig(f"source {source.name}: the ratio must be above 0, not {source.ratio}")
            if source.samples_each < 1:
                raise BadConfig(f"source {source.name}: samples_each must be at least 1, not {source.samples_each}")
        if len(orders) != len(sources):
            raise ValueError(f"{len(sources)} sources need as many orders, not {len(orders)}")
        self.sources, self.orders, self.seed = tuple(sources), tuple(orders), seed
        # Fractions, because a share must not depend on how a machine rounds.
        ratios = [Fraction(source.ratio) for source in sources]
        self._shares = tuple(ratio / sum(ratios) for ratio in ratios)
        self._leaders = _leaders(self.sources, digests or [""] * len(sources))
        self.digest = _digest(self.sources, self.orders, seed, digests)

    @classmethod
    def over(cls, sources: Sequence[Source], datasets: Sequence[Dataset], seed: int, window_shards: int = 8) -> Mixture:
        """`datasets` in the order of `sources`. Each source has a seed of its own: two sources of one dataset would
        otherwise show the same pictures at the same time. That is what those with several samples each want."""
        seeds = [source_seed(seed, leader) for leader in _leaders(sources, [one.digest for one in datasets])]
        orders = [
            EpochOrder(dataset.shard_sizes, one, window_shards) for dataset, one in zip(datasets, seeds, strict=True)
        ]
        return cls(sources, orders, seed, [dataset.digest for dataset in datasets])

    def start(self) -> Cursor:
        return Cursor(0, (0,) * len(self.sources))

    def plan(self, cursor: Cursor, batch: int) -> tuple[tuple[Draw, ...], Cursor]:
        """The next `batch` samples, and where the data stands after them."""
        amounts = self._amounts(cursor, batch)
        visits = self._visits(cursor.taken, amounts)
        by_leader = np.repeat(np.arange(len(visits)), [len(one) for one in visits])
        mixed = by_leader[permutation(len(by_leader), self.seed, cursor.position, _BATCH)]
        ahead, draws = [iter(one) for one in visits], list[Draw]()
        for leader in mixed.tolist():
            first = cursor.position + len(draws)
            for position, (source, number) in enumerate(next(ahead[leader]), start=first):
                each = self.sources[source].samples_each
                item, epoch = self.orders[source].item(number // each)
                draws.append(Draw(source, item, epoch, position, first, number % each if each > 1 else None))
        taken = tuple(before + more for before, more in zip(cursor.taken, amounts, strict=True))
        return tuple(draws), Cursor(cursor.position + batch, taken)

    def to_json(self, cursor: Cursor) -> dict[str, Any]:
        """The cursor, and whose it is."""
        return {"mixture": self.digest, **cursor.to_json()}

    def cursor(self, value: Mapping[str, Any]) -> Cursor:
        """The other way round. Raises BadConfig when the cursor is another mixture's."""
        if value.get("mixture") != self.digest:
            raise BadConfig(
                f"the checkpoint stands in the data mixture {str(value.get('mixture'))[:12]}, this recipe has "
                f"{self.digest[:12]}: the sources, their ratios, the data itself or the seed have changed"
            )
        cursor = Cursor.from_json(value)
        if len(cursor.taken) != len(self.sources):
            raise BadConfig(f"the cursor counts {len(cursor.taken)} sources, the recipe has {len(self.sources)}")
        return cursor

    def _visits(self, taken: Sequence[int], amounts: Sequence[int]) -> list[list[list[tuple[int, int]]]]:
        """By leader the visits of a step, each as (source, number of the sample among all that the source gives)."""
        visits: list[dict[int, list[tuple[int, int]]]] = [{} for _ in self.sources]
        for source, (begin, amount) in enumerate(zip(taken, amounts, strict=True)):
            mine, each = visits[self._leaders[source]], self.sources[source].samples_each
            for number in range(begin, begin + amount):
                mine.setdefault(number // each, []).append((source, number))
        return [[one[visit] for visit in sorted(one)] for one in visits]

    def _amounts(self, cursor: Cursor, batch: int) -> list[int]:
        """How many of the batch each source gives: whole parts of what it lacks, the rest to the largest remainders."""
        end = cursor.position + batch
        lacks = [share * end - taken for share, taken in zip(self._shares, cursor.taken, strict=True)]
        amounts = [max(0, floor(lack)) for lack in lacks]
        by_remainder = sorted(range(len(lacks)), key=lambda one: amounts[one] - lacks[one])
        left = batch - sum(amounts)
        for one in by_remainder[: max(0, left)]:
            amounts[one] += 1
        # A source that is ahead of its share gives nothing; the others then give less than they lack, by turns.
        for _ in range(left, 0):
            most = max((one for one in by_remainder if amounts[one]), key=lambda one: amounts[one] - lacks[one])
            amounts[most] -= 1
        return amounts


def _leaders(sources: Sequence[Source], digests: Sequence[str]) -> list[int]:
    """Of each source the first one that visits the same records at the same time; itself, where it takes one sample."""
    first: dict[str | int, int] = {}
    keys = [
        digest if one.samples_each > 1 and digest else n
        for n, (one, digest) in enumerate(zip(sources, digests, strict=True))
    ]
    return [first.setdefault(key, number) for number, key in enumerate(keys)]


def source_seed(seed: int, source: int) -> int:
    """The seed of a source's order."""
    words = np.random.SeedSequence([seed & (2**64 - 1), source, _SOURCE]).generate_state(2, np.uint32)
    return int(words[0]) << 32 | int(words[1])


def _digest(sources: Iterable[Source], orders: Iterable[EpochOrder], seed: int, digests: Sequence[str]) -> str:
    """Of all that decides which samples are drawn and how they are asked; not of where the data lies."""
    asked = [{name: value for name, value in asdict(source).items() if name != "data"} for source in sources]
    for one in asked:
        if one["samples_each"] == 1:
            del one["samples_each"]  # as in checkpoints from before there was such a field
    laid = [[list(order.shard_sizes), order.seed, order.window_shards] for order in orders]
    return hashlib.sha256(json.dumps([asked, laid, seed, list(digests)], sort_keys=True).encode()).hexdigest()
