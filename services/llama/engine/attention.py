"""Attention over the blocks of a paged cache, in torch.

Requests with one row (they decode) go through one batched product, over the longest of them with a mask; each request
with more rows through a call of its own. Blocks are copied together first, since torch's products take
no block tables: into buffers that stay, as fresh memory of that size would cost more than the copying.
Legend: B decoding requests, L positions of the longest, H heads, K key/value heads, G = H / K, d head dim, N blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from services.llama.engine.batch import Batch, Int32s
from services.llama.engine.blocks import BLOCK, blocks_for
from ziya.model.layout import LlamaShape

PART = 1 << 19  # numbers of keys or values that are copied together at once, on a CPU


class KeysValues(NamedTuple):
    """Keys and values of a layer: of the whole cache, or of the rows of a step."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Chunk:
    """Rows `start : stop` of the step: the last of `length` positions in `lanes` [K * N], with their `mask` if any."""

    start: int
    stop: int
    length: int
    lanes: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class Plan:
    """The same for each layer of a step. A lane is a block of one head: lane = block * K + head.

    `written` [T * K] says where rows go: lane * BLOCK + place. `decoding` are rows of requests that have one, with
    `lanes` [B * K * N] and `mask` [B, N * BLOCK].
    """

    written: Tensor
    decoding: Tensor | None
    lanes: Tensor
    mask: Tensor
    chunks: tuple[Chunk, ...]


class PagedAttention:
    """For one model and one thread; blocks are [K, BLOCK, d] each."""

    def __init__(self, shape: LlamaShape) -> None:
        self._heads, self._kv_heads, self._width = shape.heads, shape.kv_heads, shape.head_dim
        self._room = [torch.empty(0), torch.empty(0)]

    def plan(self, batch: Batch, device: torch.device) -> Plan:
        """What does not depend on the layer."""
        counts = np.diff(batch.starts_B1)
        positions = batch.positions_T
        blocks = np.repeat(batch.tables_BN, counts, axis=0)[np.arange(len(positions)), positions // BLOCK]
        heads = np.arange(self._kv_heads)
        written = (blocks[:, None].astype(np.int64) * self._kv_heads + heads) * BLOCK + (positions % BLOCK)[:, None]
        alone = np.flatnonzero(counts == 1)
        lengths = batch.lengths_B[alone]
        width = blocks_for(int(lengths.max(initial=0)))
        beyond = np.arange(width * BLOCK) >= lengths[:, None]
        return Plan(
            written=torch.from_numpy(written.reshape(-1)).to(device),
            decoding=torch.from_numpy(batch.starts_B1[alone].astype(np.int64)).to(device) if len(alone) else None,
            lanes=self._lanes(batch.tables_BN[alone, :width], device),
            mask=torch.from_numpy(np.where(beyond, np.float32(-np.inf), np.float32(0))).to(device),
            chunks=tuple(self._chunk(batch, int(number), device) for number in np.flatnonzero(counts > 1)),
        )

    def _chunk(self, batch: Batch, number: int, device: torch.device) -> Chunk:
        start, stop = (int(row) for row in batch.starts_B1[number : number + 2])
        length = int(batch.lengths_B[number])
        mask = None
        if length > stop - start:
            mask = torch.ones(stop - start, length, dtype=torch.bool, device=device).tril_(length - (stop - start))
        return Chunk(
            start, stop, length, self._lanes(batch.tables_BN[number : number + 1, : blocks_for(length)], device), mask
        )

    def _lanes(self, tables_BN: Int32s, device: torch.device) -> Tensor:
        lanes = tables_BN[:, None].astype(np.int64) * self._kv_heads + np.arange(self._kv_heads)[:, None]
        return torch.from_numpy(lanes.reshape(-1)).to(device)

    def attend(self, plan: Plan, queries_THd: Tensor, fresh: KeysValues, cached: KeysValues) -> Tensor:
        """[T, H * d]. Writes the rows' `fresh` keys and values [T, K, d] to the `cached` ones of the layer first."""
        for whole, rows in ((cached.keys, fresh.keys), (cached.values, fresh.values)):
            whole.view(-1, self._width).index_copy_(0, plan.written, rows.flatten(0, 1).to(whole.dtype))
        if plan.decoding is not None and not plan.chunks:
            return self._decode(plan, queries_THd, cached)
        attended_TD = queries_THd.new_empty(len(queries_THd), self._heads * self._width)
        if plan.decoding is not None:
            attended_TD[plan.decoding] = self._decode(plan, queries_THd[plan.decoding], cached)
        for chunk in plan.chunks:
            attended_TD[chunk.start : chunk.stop] = self._prefill(chunk, queries_THd, cached)
        return attended_TD

    def _decode(self, plan: Plan, queries_BHd: Tensor, cached: KeysValues) -> Tensor:
        """One query each. So keys times query is faster than query times transposed keys, and far faster than sdpa."""
        batch, length = plan.mask.shape
        lanes = batch * self._kv_heads
        queries = queries_BHd.to(cached.keys.dtype).reshape(lanes, -1, self._width).transpose(1, 2)
        scores = queries.new_empty(lanes, length, queries.shape[2])
        for part in self._parts(lanes, length, queries.device):
            keys = self._gather(plan.lanes, part, length, cached.keys)
            torch.bmm(keys, queries[part], out=scores[part])
        scores = scores.view(batch, self._kv_heads, length, -1).transpose(2, 3)
        weights = torch.add(plan.mask[:, None, None], scores, alpha=self._width**-0.5).softmax(-1).to(queries.dtype)
        weights = weights.reshape(lanes, -1, length)
        attended = queries.new_empty(lanes, queries.shape[2], self._width)
        for part in self._parts(lanes, length, queries.device):
            values = self._gather(plan.lanes, part, length, cached.values)
            torch.bmm(weights[part], values, out=attended[part])
        return attended.view(batch, -1).to(queries_BHd.dtype)

    def _parts(self, lanes: int, length: int, device: torch.device) -> list[slice]:
        """Lanes (a head of a request) to be taken at once, so that a CPU finds in its cache what it has just copied."""
        size = max(1, PART // (length * self._width)) if device.type == "cpu" else lanes
        return [slice(start, min(start + size, lanes)) for start in range(0, lanes, size)]

    def _prefill(self, chunk: Chunk, queries_THd: Tensor, cached: KeysValues) -> Tensor:
        queries_HTd = queries_THd[chunk.start : chunk.stop].transpose(0, 1)
        heads = slice(0, self._kv_heads)
        room = blocks_for(chunk.length) * BLOCK
        keys, values = (
            self._gather(chunk.lanes, heads, room, part, number)[None, :, : chunk.length]
            for number, part in enumerate((cached.keys, cached.values))
        )
        attended_HTd = F.scaled_dot_product_attention(
            queries_HTd[None].to(keys.dtype), keys, values,
            attn_mask=chunk.mask, is_causal=chunk.mask is None, enable_gqa=self._kv_heads != self._heads,
        )[0]  # fmt: skip
        return attended_HTd.transpose(0, 1).reshape(chunk.stop - chunk.start, -1).to(queries_THd.dtype)

    def _gather(self, lanes: Tensor, part: slice, length: int, cached: Tensor, buffer: int = 0) -> Tensor:
        """The part's keys or values, [lanes, length, d], in a buffer that the next call with its number fills again."""
        per_lane = length // BLOCK
        wanted = lanes[part.start * per_lane : part.stop * per_lane]
        numbers = len(wanted) * BLOCK * self._width
        if self._room[buffer].numel() < numbers or self._room[buffer].dtype != cached.dtype:
            self._room[buffer] = torch.empty(numbers, dtype=cached.dtype, device=cached.device)
        room = self._room[buffer][:numbers].view(-1, BLOCK, self._width)
        torch.index_select(cached.view(-1, BLOCK, self._width), 0, wanted, out=room)
        return room.view(-1, length, self._width)
