"""What one step computes, as plain arrays, and the protocol of a model that computes it.

Every sequence of a step has some rows in it: one when it decodes, many for a chunk of its prompt, one and its
drafts when guesses are verified. There is one code path for all of them. Legend: T rows of the step, B sequences,
N blocks of the longest table, D width, S rows whose logits are wanted, V vocabulary, Q visual tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.llama.engine.kv_cache import KVCache
from services.llama.engine.lora import LoraAdapter
from ziya.model.layout import LlamaShape

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True)
class AdapterRows:
    """Rows `start : stop` of the step go through `adapter` as well."""

    adapter: LoraAdapter
    start: int
    stop: int

    @property
    def name(self) -> str:
        return self.adapter.name


@dataclass(frozen=True)
class Batch:
    """One step. Rows of sequence b are `starts_B1[b] : starts_B1[b + 1]`, in the order of their positions.

    `lengths_B` counts a sequence's positions in the cache after the step: its last row is at `lengths_B[b] - 1`.
    `tables_BN` has its blocks in order, filled up with 0: position p lies in block `tables_BN[b, p // size]`. All
    int32 and C-contiguous. Sequences may share blocks that one of them fills in this very step, so a model writes all
    keys and values of a layer before any row attends. `adapters` are disjoint and in order; rows outside have none.
    Logits are wanted of the last `wanted_B[b]` rows of each sequence, 0 of a prompt that goes on; None: of all rows.
    """

    hidden_TD: Tensor
    starts_B1: Int32s
    lengths_B: Int32s
    tables_BN: Int32s
    adapters: tuple[AdapterRows, ...] = ()
    wanted_B: Int32s | None = None

    @property
    def sequences(self) -> int:
        return len(self.lengths_B)

    @cached_property
    def positions_T(self) -> Int32s:
        """Each row's place in its sequence. Compiled code asks for none, so a step of it does not pay for them."""
        counts_B = np.diff(self.starts_B1)
        before_B = self.lengths_B - self.starts_B1[1:]
        positions_T: Int32s = np.arange(self.starts_B1[-1], dtype=np.int32) + np.repeat(before_B, counts_B)
        return positions_T

    def wanted_of(self, hidden_TD: Tensor) -> Tensor:
        """Those rows of [T, D] whose logits are wanted, in order: [S, D]."""
        if self.wanted_B is None or int(self.wanted_B.sum()) == len(hidden_TD):
            return hidden_TD
        stops_B = self.starts_B1[1:]
        rows = [np.arange(stop - wanted, stop) for stop, wanted in zip(stops_B, self.wanted_B, strict=True)]
        return hidden_TD[torch.from_numpy(np.concatenate(rows)).to(hidden_TD.device)]


class Model(Protocol):
    """A LLaMA on one device, for one thread. It alone knows how keys and values lie within a block."""

    @property
    def shape(self) -> LlamaShape: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def new_cache(self, blocks: int) -> KVCache:
        """An empty cache of so many blocks, in this model's own layout."""

    def embed(self, ids_T: Tensor) -> Tensor:
        """int64 [T] -> [T, D]."""

    def project(self, visual_QD: Tensor) -> Tensor:
        """Visual tokens, [Q, Q-Former width], to rows of the model's width."""

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Hidden states [S, D] of the wanted rows, before the final norm; all rows' keys and values go to `cache`."""

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """float32 [S, V]; the caller may overwrite it."""
