"""Steps of an engine without an engine: texts in blocks of chance, and batches of the next rows of some of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from services.llama.engine.batch import Batch
from services.llama.engine.blocks import BLOCK, blocks_for


class Texts:
    """So many tokens each. The blocks that hold them, of 0 … `blocks` - 1, are scattered."""

    def __init__(self, lengths: list[int], blocks: int, seed: int = 0) -> None:
        self._rng = random.Random(seed)
        self.tokens = [[self._rng.randrange(3, 290) for _ in range(length)] for length in lengths]
        drawn = iter(self._rng.sample(range(blocks), sum(map(blocks_for, lengths))))
        self._tables = [[next(drawn) for _ in range(blocks_for(length))] for length in lengths]
        self._done = [0] * len(lengths)

    @property
    def left(self) -> dict[int, int]:
        """Texts with rows to come, and how many."""
        counts = {number: len(tokens) - self._done[number] for number, tokens in enumerate(self.tokens)}
        return {number: count for number, count in counts.items() if count}

    def step(self, counts: Mapping[int, int]) -> tuple[Tensor, Batch]:
        """Token ids of the next rows of these texts, and their batch but for the hidden states."""
        ids = [token for n, count in counts.items() for token in self.tokens[n][self._done[n] : self._done[n] + count]]
        for number, count in counts.items():
            self._done[number] += count
        lengths = [self._done[number] for number in counts]
        tables = np.zeros((len(counts), max(map(blocks_for, lengths))), np.int32)
        for table, number, length in zip(tables, counts, lengths, strict=True):
            table[: blocks_for(length)] = self._tables[number][: blocks_for(length)]
        return torch.tensor(ids), Batch(
            hidden_TD=torch.empty(0),
            starts_B1=np.cumsum([0, *counts.values()]).astype(np.int32),
            lengths_B=np.array(lengths, np.int32),
            tables_BN=tables,
        )

    def random_steps(self) -> Iterator[tuple[Tensor, Batch]]:
        """To the end of all: prompts in chunks, single rows, and some rows at once, as of guesses that are verified."""
        while left := self.left:
            some = self._rng.sample(sorted(left), self._rng.randint(1, len(left)))
            alone = self._rng.random() < 0.5
            counts = {n: 1 if alone else min(left[n], self._rng.choice((1, 1, 3, 5, 40))) for n in some}
            yield self.step(counts)


def positions_of(batch: Batch, sequence: int) -> np.ndarray:
    """Where in the cache, as block * BLOCK + place, the positions of a batch's sequence lie."""
    at = np.arange(batch.lengths_B[sequence])
    places: np.ndarray = batch.tables_BN[sequence, at // BLOCK].astype(np.int64) * BLOCK + at % BLOCK
    return places
