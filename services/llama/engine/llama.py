"""LLaMA's forward pass over one engine step in torch, on a CPU or a GPU: every row of every request in one flat batch.

Legend: T rows of the step, S rows whose logits are wanted, B requests, D width, H heads, K key/value heads, G = H / K,
d head dim. Linear layers see all T rows at once. A layer's keys and values are all written before its attention
reads any, `attention.py` does both. Query, key and value weights are fused, and gate and up weights too. Equal to
transformers' LlamaForCausalLM; where the compiled code of `cpu.py` runs, it takes this one's place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from services.llama.engine.attention import KeysValues, PagedAttention
from services.llama.engine.batch import AdapterRows, Batch
from services.llama.engine.kv_cache import KVCache
from ziya.model.llama import LlamaWeights

# which columns of which matrix's output an adapter's projection changes
FUSED = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}


@dataclass(frozen=True)
class Layer:
    """Weights of one layer, as [out, in] matrices and [D] norms."""

    input_norm: Tensor
    qkv: Tensor
    out: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor


# (layer, its fused queries, keys and values [T, …]) -> [T, H * d]; keys and values go to the cache
Attend = Callable[[int, Tensor], Tensor]


class Llama:
    """Takes `weights` over; `context` positions at most. Not for use from two threads at once."""

    def __init__(self, weights: LlamaWeights, context: int) -> None:
        self.shape = weights.shape
        tensors = weights.tensors
        self._embedding = tensors["model.embed_tokens.weight"]
        self._head = tensors["lm_head.weight"]
        self._norm = tensors["model.norm.weight"]
        self._projection = weights.projection_weight, weights.projection_bias
        self._layers = [_layer(tensors, number) for number in range(self.shape.layers)]
        self.dtype, self.device = self._embedding.dtype, self._embedding.device
        self._cos, self._sin = _rotations(self.shape.head_dim, self.shape.rope_theta, context, self.dtype, self.device)
        heads = self.shape.heads * self.shape.head_dim, self.shape.kv_heads * self.shape.head_dim
        widths = {"q": heads[0], "k": heads[1], "v": heads[1], "o": self.shape.hidden, "down": self.shape.hidden}
        self._widths = widths | dict.fromkeys(("gate", "up"), self.shape.intermediate)
        self._attention = PagedAttention(self.shape)

    def new_cache(self, blocks: int) -> KVCache:
        return KVCache.empty(self.shape, blocks, self.dtype, self.device)

    def embed(self, ids_T: Tensor) -> Tensor:
        return F.embedding(ids_T, self._embedding)

    def project(self, visual_QD: Tensor) -> Tensor:
        """Visual tokens of the Q-Former's width to rows of the LLaMA's: the late projection."""
        return F.linear(visual_QD.to(self.device, self.dtype), *self._projection)

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """float32 [S, vocabulary]."""
        return F.linear(self._rms(hidden_SD, self._norm), self._head).float()

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """As the protocol says. The last layer computes all rows, wanted or not."""
        at = torch.from_numpy(batch.positions_T).to(self.device)
        cos, sin = self._cos[at].unsqueeze(1), self._sin[at].unsqueeze(1)
        plan = self._attention.plan(batch, self.device)

        def attend(layer: int, qkv_TD: Tensor) -> Tensor:
            queries, fresh = self._rotated(qkv_TD, cos, sin)
            return self._attention.attend(plan, queries, fresh, KeysValues(cache.keys[layer], cache.values[layer]))

        return batch.wanted_of(self._through_layers(batch.hidden_TD, batch.adapters, attend))

    def _through_layers(self, hidden: Tensor, adapters: tuple[AdapterRows, ...], attend: Attend) -> Tensor:
        for number, layer in enumerate(self._layers):
            qkv = self._linear(self._rms(hidden, layer.input_norm), layer.qkv, "qkv", number, adapters)
            hidden = hidden + self._linear(attend(number, qkv), layer.out, "o", number, adapters)
            normed = self._rms(hidden, layer.post_norm)
            gate, up = self._linear(normed, layer.gate_up, "gate_up", number, adapters).chunk(2, -1)
            hidden = hidden + self._linear(F.silu(gate).mul_(up), layer.down, "down", number, adapters)
        return hidden

    def _rotated(self, qkv_TD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, KeysValues]:
        """Queries [T, H, d], keys and values [T, K, d]; queries and keys with rotary positions."""
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        qkv = qkv_TD.view(len(qkv_TD), heads + 2 * kv_heads, self.shape.head_dim)
        qk, values_TKd = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
        # rotate_half(x) * sin is a roll by half a head, with the sign kept in the sine table
        qk = torch.addcmul(qk * cos, qk.roll(self.shape.head_dim // 2, -1), sin)
        return qk[:, :heads], KeysValues(qk[:, heads:], values_TKd)

    def _linear(
        self, rows_TD: Tensor, weight: Tensor, matrix: str, layer: int, adapters: tuple[AdapterRows, ...]
    ) -> Tensor:
        """The layer's product, with what each adapter adds to its own rows: scale * (x A^T) B^T."""
        out = F.linear(rows_TD, weight)
        for rows in adapters:
            start, own = 0, slice(rows.start, rows.stop)
            for name in FUSED[matrix]:
                change, stop = rows.adapter.layers[layer].get(name), start + self._widths[name]
                if change is not None:
                    added = F.linear(F.linear(rows_TD[own], change.down), change.up)
                    out[own, start:stop].add_(added, alpha=change.scale)
                start = stop
        return out

    def _rms(self, hidden_TD: Tensor, weight_D: Tensor) -> Tensor:
        return F.rms_norm(hidden_TD, weight_D.shape, weight_D, self.shape.rms_eps)


def _layer(tensors: dict[str, Tensor], number: int) -> Layer:
    """Takes the layer's tensors out of the dict, so that the parts are freed as the fused copies are made."""
    name = f"model.layers.{number}."
    attention, mlp = name + "self_attn.", name + "mlp."

    def fused(prefix: str, *parts: str) -> Tensor:
        return torch.cat([tensors.pop(f"{prefix}{part}_proj.weight") for part in parts])

    return Layer(
        input_norm=tensors.pop(name + "input_layernorm.weight"),
        qkv=fused(attention, "q", "k", "v"),
        out=tensors.pop(attention + "o_proj.weight"),
        post_norm=tensors.pop(name + "post_attention_layernorm.weight"),
        gate_up=fused(mlp, "gate", "up"),
        down=tensors.pop(mlp + "down_proj.weight"),
    )


def _rotations(
    width: int, theta: float, context: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rotary tables [context, head dim]: cosines, and sines whose first half is negated."""
    frequencies = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
    angles = torch.outer(torch.arange(context, dtype=torch.float32, device=device), frequencies)
    sine = angles.sin()
    return torch.cat((angles.cos(),) * 2, -1).to(dtype), torch.cat((-sine, sine), -1).to(dtype)
