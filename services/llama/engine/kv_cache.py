"""Memory for keys and values in blocks: a tensor each, [layers, blocks, kv heads, block size, head dim].

Which request owns which block is bookkeeping without tensors (`blocks.py`). How a block's numbers lie within it is
the model's own business. A block that is handed out again holds what its last owner left: finite values, and masked
positions weigh 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.llama.engine.blocks import BLOCK
from ziya.model.layout import LlamaShape


@dataclass(frozen=True)
class KVCache:
    """`keys` and `values`: [layers, blocks, kv heads, BLOCK, head dim], zero at first."""

    keys: Tensor
    values: Tensor

    @classmethod
    def empty(cls, shape: LlamaShape, blocks: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        size = (shape.layers, blocks, shape.kv_heads, BLOCK, shape.head_dim)
        return cls(_zeros(size, dtype, device), _zeros(size, dtype, device))

    @property
    def blocks(self) -> int:
        return self.keys.shape[1]


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that, on a CPU, take memory only where they are touched: calloc's pages, which torch.zeros would write."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    count = int(np.prod(size)) * dtype.itemsize
    return torch.from_numpy(np.zeros(count, dtype=np.uint8)).view(dtype).view(size)
