"""Attention over the blocks of a paged cache on a GPU, and what comes before it in a layer, in the Triton language.

`rotate_and_store` turns queries and keys to their positions and puts keys and values into their blocks. `attend` reads
them there through the block tables, with the running softmax of FlashAttention: one program for some rows of a
sequence and one key/value head, whose query heads it takes together. Where few programs would run, a sequence's
positions are split into parts, as in Flash-Decoding, and `merge` puts the parts together.

Only a torch build for CUDA brings triton, so nothing imports this module before a GPU is chosen. It was run in Triton's
interpreter and compiled for compute capability 9.0; on a GPU it has not been run.
Legend: T rows, H heads, K key/value heads, d head dim, P parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.llama.engine.blocks import BLOCK
from services.llama.engine.device_batch import DeviceBatch
from services.llama.engine.kv_cache import KVCache
from ziya.model.layout import LlamaShape

DECODE_TILE, PREFILL_TILE = 16, 64  # rows times grouped heads that a program takes; 16 is the least that tl.dot takes
LEAST_PART = 128  # positions; shorter parts cost more in merging than they bring
MOST_PARTS = 8
LOG2_E = 1.4426950408889634


class TritonAttention:
    """For one model on one GPU. `processors` of it are to be kept busy; tables of `rotations` are [context, d] each."""

    def __init__(self, shape: LlamaShape, rotations: tuple[Tensor, Tensor], processors: int) -> None:
        self._shape, self._processors = shape, processors
        self._cos, self._sin = rotations
        self._group = shape.heads // shape.kv_heads
        self._dims = max(16, triton.next_power_of_2(shape.head_dim))
        self._parts = min(MOST_PARTS, triton.next_power_of_2(max(1, len(self._cos) // LEAST_PART)))

    def store(self, layer: int, qkv_TD: Tensor, rows: DeviceBatch, cache: KVCache) -> Tensor:
        """Puts the rows' keys and values into the cache. Returns the rotated queries [T, H, d]."""
        shape = self._shape
        queries_THd = qkv_TD.new_empty(len(qkv_TD), shape.heads, shape.head_dim)
        rotate_and_store[len(qkv_TD), shape.heads + 2 * shape.kv_heads](
            qkv_TD, queries_THd, cache.keys[layer], cache.values[layer],
            self._cos, self._sin, rows.positions_T, rows.places_T,
            HEADS=shape.heads, KV_HEADS=shape.kv_heads, WIDTH=shape.head_dim, DIMS=self._dims, BLOCK=BLOCK,
            num_warps=1,
        )  # fmt: skip
        return queries_THd

    def attend(self, layer: int, queries_THd: Tensor, rows: DeviceBatch, cache: KVCache) -> Tensor:
        """[T, H * d]: each row over the positions up to its own. All its keys and values must be stored already."""
        shape, sequences = self._shape, rows.sequences
        tile = DECODE_TILE if rows.most_rows * self._group <= DECODE_TILE else PREFILL_TILE
        tile = max(tile, triton.next_power_of_2(self._group))
        tiles = triton.cdiv(rows.most_rows, tile // self._group)
        # All or nothing, so that no other kernel than those that have been warm is compiled while requests wait.
        few = tile == DECODE_TILE and tiles * shape.kv_heads * sequences < 2 * self._processors
        parts = self._parts if few else 1
        attended = torch.empty_like(queries_THd)
        sums, tops, totals = self._partial(queries_THd, parts) if parts > 1 else (attended, attended, attended)
        attend[tiles * parts, shape.kv_heads, sequences](
            queries_THd, cache.keys[layer], cache.values[layer], rows.starts_B1, rows.lengths_B, rows.tables_BN,
            sums, tops, totals, shape.head_dim**-0.5 * LOG2_E, rows.tables_BN.shape[1],
            HEADS=shape.heads, KV_HEADS=shape.kv_heads, WIDTH=shape.head_dim, DIMS=self._dims, BLOCK=BLOCK,
            TILE=tile, SPAN=64 if queries_THd.element_size() == 2 else 32, PARTS=parts,
        )  # fmt: skip
        if parts > 1:
            merge[len(queries_THd), shape.heads](
                sums, tops, totals, attended,
                HEADS=shape.heads, WIDTH=shape.head_dim, DIMS=self._dims, PARTS=parts, num_warps=1,
            )  # fmt: skip
        return attended.flatten(1)

    def _partial(self, queries_THd: Tensor, parts: int) -> tuple[Tensor, Tensor, Tensor]:
        """Room for each part's weighted sum of values, largest score, and sum of weights, in float32."""
        rows, heads, width = queries_THd.shape
        sums = queries_THd.new_empty(rows, heads, parts, width, dtype=torch.float32)
        tops, totals = (queries_THd.new_empty(rows, heads, parts, dtype=torch.float32) for _ in range(2))
        return sums, tops, totals


@triton.jit
def rotate_and_store(  # noqa: PLR0917 (the launcher knows no other arguments)
    qkv: tl.tensor, queries: tl.tensor, keys: tl.tensor, values: tl.tensor,
    cosines: tl.tensor, sines: tl.tensor, positions: tl.tensor, places: tl.tensor,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, DIMS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """A program has one head of one row. Its row of `places` is block * BLOCK + the place in the block."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dims = tl.arange(0, DIMS)
    inside = dims < WIDTH
    source = qkv + (row * (HEADS + 2 * KV_HEADS) + head) * WIDTH
    numbers = tl.load(source + dims, mask=inside).to(tl.float32)
    if head < HEADS + KV_HEADS:
        # rotate_half(x) * sin is a roll by half a head, with the sign kept in the sine table
        rolled = tl.load(source + (dims + WIDTH // 2) % WIDTH, mask=inside).to(tl.float32)
        turn = tl.load(positions + row).to(tl.int64) * WIDTH + dims
        cosine, sine = tl.load(cosines + turn, mask=inside), tl.load(sines + turn, mask=inside)
        numbers = numbers * cosine.to(tl.float32) + rolled * sine.to(tl.float32)
    if head < HEADS:
        tl.store(queries + (row * HEADS + head) * WIDTH + dims, numbers, mask=inside)
    else:
        place, kv_head = tl.load(places + row).to(tl.int64), (head - HEADS) % KV_HEADS
        target = ((place // BLOCK * KV_HEADS + kv_head) * BLOCK + place % BLOCK) * WIDTH + dims
        if head < HEADS + KV_HEADS:
            tl.store(keys + target, numbers, mask=inside)
        else:
            tl.store(values + target, numbers, mask=inside)


# The table's width changes from step to step, and must not have kernels compiled anew while requests wait.
@triton.jit(do_not_specialize=["table_width"])
def attend(  # noqa: PLR0917
    queries: tl.tensor, keys: tl.tensor, values: tl.tensor, starts: tl.tensor, lengths: tl.tensor, tables: tl.tensor,
    sums: tl.tensor, tops: tl.tensor, totals: tl.tensor, scale: tl.tensor, table_width: tl.tensor,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, DIMS: tl.constexpr, BLOCK: tl.constexpr,
    TILE: tl.constexpr, SPAN: tl.constexpr, PARTS: tl.constexpr,
) -> None:  # fmt: skip
    """A program has a tile of a sequence's rows, a key/value head, and a part of the positions, SPAN of them at a time.

    With one part `sums` takes the result itself. A part that lies beyond the tile's positions gives zeros.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    ROWS: tl.constexpr = TILE // GROUP
    kv_head, sequence = tl.program_id(1), tl.program_id(2)
    begin, part = tl.program_id(0) // PARTS * ROWS, tl.program_id(0) % PARTS
    first = tl.load(starts + sequence)
    count, length = tl.load(starts + sequence + 1) - first, tl.load(lengths + sequence)
    if begin >= count:
        return
    lines, dims, span = tl.arange(0, TILE), tl.arange(0, DIMS), tl.arange(0, SPAN)
    row, head = begin + lines // GROUP, kv_head * GROUP + lines % GROUP
    wanted, inside = (row < count) & (lines < ROWS * GROUP), dims < WIDTH
    position = length - count + row
    line = (first + row).to(tl.int64) * HEADS + head
    asked = tl.load(queries + line[:, None] * WIDTH + dims[None, :], mask=wanted[:, None] & inside[None, :], other=0.0)
    top = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    gathered = tl.zeros([TILE, DIMS], tl.float32)
    stop = tl.minimum(length, length - count + begin + ROWS)
    each = tl.cdiv(stop, PARTS * SPAN) * SPAN
    end = tl.minimum(stop, (part + 1) * each)
    for start in range(part * each, end, SPAN):
        at = start + span
        known = at < end
        block = tl.load(tables + sequence * table_width + at // BLOCK, mask=known, other=0).to(tl.int64)
        place = ((block * KV_HEADS + kv_head) * BLOCK + at % BLOCK) * WIDTH
        seen = known[:, None] & inside[None, :]
        key = tl.load(keys + place[:, None] + dims[None, :], mask=seen, other=0.0)
        score = tl.dot(asked, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(known[None, :] & (at[None, :] <= position[:, None]), score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        against = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen nothing of its part yet
        weight = tl.exp2(score - against[:, None])
        fade = tl.exp2(top - against)
        total = total * fade + tl.sum(weight, 1)
        value = tl.load(values + place[:, None] + dims[None, :], mask=seen, other=0.0)
        gathered = gathered * fade[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        top = higher
    kept = wanted[:, None] & inside[None, :]
    if PARTS == 1:
        tl.store(sums + line[:, None] * WIDTH + dims[None, :], gathered / total[:, None], mask=kept)
    else:
        line = line * PARTS + part
        tl.store(sums + line[:, None] * WIDTH + dims[None, :], gathered, mask=kept)
        tl.store(tops + line, top, mask=wanted)
        tl.store(totals + line, total, mask=wanted)


@triton.jit
def merge(  # noqa: PLR0917
    sums: tl.tensor, tops: tl.tensor, totals: tl.tensor, attended: tl.tensor,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, DIMS: tl.constexpr, PARTS: tl.constexpr,
) -> None:  # fmt: skip
    """A program has one head of one row: its parts, weighted by what their largest scores were."""
    line = tl.program_id(0).to(tl.int64) * HEADS + tl.program_id(1)
    dims, parts = tl.arange(0, DIMS), line * PARTS + tl.arange(0, PARTS)
    inside = dims < WIDTH
    top = tl.load(tops + parts)
    fade = tl.exp2(top - tl.max(top, 0))
    total = tl.sum(tl.load(totals + parts) * fade, 0)
    gathered = tl.load(sums + parts[:, None] * WIDTH + dims[None, :], mask=inside[None, :], other=0.0)
    tl.store(attended + line * WIDTH + dims, tl.sum(gathered * fade[:, None], 0) / total, mask=inside)
