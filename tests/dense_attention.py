"""What the kernels of a GPU are to compute, in plain torch: read from the same device arrays, a sequence at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from services.llama.engine.blocks import BLOCK
from services.llama.engine.device_batch import DeviceBatch
from services.llama.engine.kv_cache import KVCache
from ziya.model.layout import LlamaShape


class DenseAttention:
    """As `cuda.Attention` says, in float32 within."""

    def __init__(self, shape: LlamaShape, rotations: tuple[Tensor, Tensor]) -> None:
        self._shape, self._rotations = shape, rotations

    def store(self, layer: int, qkv_TD: Tensor, rows: DeviceBatch, cache: KVCache) -> Tensor:
        shape = self._shape
        heads = qkv_TD.view(len(qkv_TD), -1, shape.head_dim)
        turned, values = heads[:, : shape.heads + shape.kv_heads].float(), heads[:, shape.heads + shape.kv_heads :]
        cos, sin = (table[rows.positions_T.long()].float()[:, None] for table in self._rotations)
        turned = (turned * cos + turned.roll(shape.head_dim // 2, -1) * sin).to(qkv_TD.dtype)
        places = rows.places_T.long()
        cache.keys[layer][places // BLOCK, :, places % BLOCK] = turned[:, shape.heads :]
        cache.values[layer][places // BLOCK, :, places % BLOCK] = values
        return turned[:, : shape.heads]

    def attend(self, layer: int, queries_THd: Tensor, rows: DeviceBatch, cache: KVCache) -> Tensor:
        attended = []
        for sequence, length in enumerate(rows.lengths_B.tolist()):
            start, stop = rows.starts_B1[sequence : sequence + 2].tolist()
            blocks = rows.tables_BN[sequence, : -(-length // BLOCK)].long()
            keys, values = (
                part[layer][blocks].transpose(1, 2).flatten(0, 1)[:length].transpose(0, 1).float()
                for part in (cache.keys, cache.values)
            )
            mask = torch.ones(stop - start, length, dtype=torch.bool, device=keys.device).tril(length - (stop - start))
            queries = queries_THd[start:stop].transpose(0, 1).float()
            answer = F.scaled_dot_product_attention(
                queries[None], keys[None], values[None], attn_mask=mask, enable_gqa=True
            )[0]
            attended.append(answer.transpose(0, 1).flatten(1))
        return torch.cat(attended).to(queries_THd.dtype)
