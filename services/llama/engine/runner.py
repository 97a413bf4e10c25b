"""From the scheduler's choice to arrays and back: runs one step of the model, gives each request its next tokens.

Always from the engine's thread. A request whose guesses were verified gets several tokens at once: the model's own
choice at every row, for as long as the guesses before it were right.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from services.llama.engine.batch import AdapterRows, Batch, Model
from services.llama.engine.choice import Chosen
from services.llama.engine.kv_cache import KVCache
from services.llama.engine.prefix import VISUAL
from services.llama.engine.sampler import choose
from services.llama.engine.scheduler import Rows
from services.llama.engine.sequence import Sequence


class Runner:
    """The model with its cache."""

    def __init__(self, model: Model, cache: KVCache) -> None:
        self._model = model
        self._cache = cache

    def step(self, rows: Rows) -> list[tuple[Sequence, list[Chosen]]]:
        """One forward pass; the next tokens of each request whose known positions are all computed after it."""
        rows = sorted(rows, key=lambda row: row[0].adapter.lineage if row[0].adapter else b"")
        starts = [0, *accumulate(count for _, count in rows)]
        hidden_SD = self._model.forward(self._batch(rows, starts), self._cache)
        ready = [sequence for sequence, count in rows if count >= sequence.pending]
        if not ready:
            return []
        choices = [sequence.choice for sequence in ready for _ in range(1 + len(sequence.drafts))]
        chosen = choose(self._model.logits(hidden_SD), choices)
        return [(sequence, _accepted(sequence.drafts, chosen)) for sequence in ready]

    def _batch(self, rows: Rows, starts: list[int]) -> Batch:
        """With as few array operations as can be: a step reads all weights, so none of them is in a cache any more."""
        tables_BN = np.zeros((len(rows), max(len(sequence.blocks) for sequence, _ in rows)), dtype=np.int32)
        for table, (sequence, _) in zip(tables_BN, rows, strict=True):
            table[: len(sequence.blocks)] = sequence.blocks
        return Batch(
            hidden_TD=self._hidden(rows),
            starts_B1=np.array(starts, dtype=np.int32),
            lengths_B=np.array([sequence.computed + count for sequence, count in rows], dtype=np.int32),
            tables_BN=tables_BN,
            adapters=_adapters(rows, starts),
            wanted_B=np.array([_wanted(sequence, count) for sequence, count in rows], dtype=np.int32),
        )

    def _hidden(self, rows: Rows) -> Tensor:
        """Embedded tokens, with images' projected rows in their places."""
        tokens = list[int]()
        for sequence, count in rows:
            known = sequence.prefix.tokens[sequence.computed : sequence.computed + count]
            tokens += known + sequence.drafts
        ids_T = torch.tensor(tokens, dtype=torch.long)
        if VISUAL not in tokens:
            return self._model.embed(ids_T.to(self._model.device))
        hidden_TD = self._model.embed(ids_T.clamp_min(0).to(self._model.device))
        visual_QD = np.concatenate(
            [visual for sequence, count in rows for visual in sequence.visual_rows(sequence.computed, count)]
        )
        at = torch.nonzero(ids_T == VISUAL)[:, 0].to(self._model.device)
        hidden_TD[at] = self._model.project(torch.from_numpy(visual_QD))
        return hidden_TD


def _wanted(sequence: Sequence, count: int) -> int:
    """Of how many rows the logits are wanted: none while some of the sequence's known positions are not computed."""
    return 1 + len(sequence.drafts) if count >= sequence.pending else 0


def _accepted(drafts: list[int], chosen: list[Chosen]) -> list[Chosen]:
    """Takes the sequence's share off `chosen`: what the model chose, up to its first choice that was not guessed."""
    right = 0
    while right < len(drafts) and drafts[right] == chosen[right].token:
        right += 1
    accepted = chosen[: right + 1]
    del chosen[: len(drafts) + 1]
    return accepted


def _adapters(rows: Rows, starts: list[int]) -> tuple[AdapterRows, ...]:
    """Ranges of rows that share an adapter; `rows` are sorted by it."""
    ranges = list[AdapterRows]()
    for number, (sequence, _) in enumerate(rows):
        if sequence.adapter is None:
            continue
        start, stop = starts[number : number + 2]
        if ranges and ranges[-1].adapter is sequence.adapter:
            ranges[-1] = AdapterRows(sequence.adapter, ranges[-1].start, stop)
        else:
            ranges.append(AdapterRows(sequence.adapter, start, stop))
    return tuple(ranges)
