"""Keys and values of the running requests, one slot each: [layers, slots, kv heads, context, head dim].

Slots in use are kept compact by their owner (`move`), so that decoding all requests reads a plain slice of
the cache and copies nothing. Fresh slots hold zeros and later ones what finite values the last owner left:
masked positions weigh 0, and 0 times a finite value is 0.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ziya.model.layout import LlamaShape


class KVCache:
    """Room for `slots` requests of `context` positions."""

    def __init__(self, shape: LlamaShape, slots: int, context: int, dtype: torch.dtype, device: torch.device) -> None:
        self.slots = slots
        self.context = context
        self._heads = shape.kv_heads
        size = (shape.layers, slots, shape.kv_heads, context, shape.head_dim)
        self._keys = _zeros(size, dtype, device)
        self._values = _zeros(size, dtype, device)
        rows = (shape.layers, slots * shape.kv_heads * context, shape.head_dim)
        lanes = (shape.layers, slots * shape.kv_heads, context, shape.head_dim)
        self._key_rows, self._value_rows = self._keys.view(rows).unbind(), self._values.view(rows).unbind()
        self._key_lanes, self._value_lanes = self._keys.view(lanes).unbind(), self._values.view(lanes).unbind()
        self._head_offsets = torch.arange(shape.kv_heads, device=device) * context

    def rows(self, slots_T: Tensor, positions_T: Tensor) -> Tensor:
        """Where tokens are written: [T * kv heads] row numbers for `write`."""
        first_T = slots_T * (self._heads * self.context) + positions_T
        return (first_T[:, None] + self._head_offsets).flatten()

    def write(self, layer: int, rows: Tensor, keys_THD: Tensor, values_THD: Tensor) -> None:
        self._key_rows[layer].index_copy_(0, rows, keys_THD.flatten(0, 1))
        self._value_rows[layer].index_copy_(0, rows, values_THD.flatten(0, 1))

    def front(self, layer: int, slots: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `slots` slots: views [slots * kv heads, length, head dim]."""
        lanes = slots * self._heads
        return self._key_lanes[layer][:lanes, :length], self._value_lanes[layer][:lanes, :length]

    def slot(self, layer: int, slot: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one slot: views [kv heads, length, head dim]."""
        return self._keys[layer, slot, :, :length], self._values[layer, slot, :, :length]

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of a slot over another."""
        for tensor in (self._keys, self._values):
            tensor[:, target, :, :length] = tensor[:, source, :, :length]


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that, on a CPU, take memory only where they are touched: calloc's pages, which torch.zeros would write."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    count = int(np.prod(size)) * dtype.itemsize
    return torch.from_numpy(np.zeros(count, dtype=np.uint8)).view(dtype).view(size)
