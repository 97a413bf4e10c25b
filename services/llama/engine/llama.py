"""LLaMA's forward pass over one engine step: every token of every request in one flat batch.

Legend: T tokens of the step, S rows whose logits are wanted, D width, H heads, K key/value heads, G = H / K.
A step holds first one token of each decoding request, in the order of their cache slots, then any chunks of
prompts. Linear layers see all T rows at once; attention is one batched product for the decoding rows, over
the longest of them with a mask, and one call for each chunk.

Query, key and value weights are fused, and gate and up weights too. Equal to transformers' LlamaForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from services.llama.engine.kv_cache import KVCache
from ziya.model.llama import LlamaWeights


@dataclass(frozen=True)
class Chunk:
    """Rows `start : start + count` of a step: tokens of the prompt in `slot`, from its `position` on."""

    start: int
    count: int
    slot: int
    position: int


@dataclass(frozen=True)
class Step:
    """What one forward pass computes. The `decoding` first rows are slots 0 …; `mask` is [decoding, longest]."""

    hidden_TD: Tensor
    positions_T: Tensor
    rows: Tensor
    decoding: int
    longest: int
    mask: Tensor | None
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Pass:
    """A step on its way through the layers, with the rotary tables at its positions: [T, 1, head dim]."""

    step: Step
    cache: KVCache
    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class Layer:
    """Weights of one block, as [out, in] matrices and [D] norms."""

    input_norm: Tensor
    qkv: Tensor
    out: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor


class Llama:
    """The model on one device; not for use from two threads at once."""

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

    def embed(self, ids_T: Tensor) -> Tensor:
        return F.embedding(ids_T, self._embedding)

    def project(self, visual_QD: Tensor) -> Tensor:
        """Visual tokens of the Q-Former's width to rows of the LLaMA's: the late projection."""
        return F.linear(visual_QD.to(self.device, self.dtype), *self._projection)

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """float32 [S, vocabulary]."""
        return F.linear(self._rms(hidden_SD, self._norm), self._head).float()

    def forward(self, step: Step, cache: KVCache) -> Tensor:
        """The hidden states [T, D] after the last block, before the final norm; keys and values go to `cache`."""
        at = step.positions_T
        run = Pass(step, cache, self._cos[at].unsqueeze(1), self._sin[at].unsqueeze(1))
        hidden = step.hidden_TD
        for number, layer in enumerate(self._layers):
            attended = self._attention(number, F.linear(self._rms(hidden, layer.input_norm), layer.qkv), run)
            hidden = hidden + F.linear(attended, layer.out)
            gate, up = F.linear(self._rms(hidden, layer.post_norm), layer.gate_up).chunk(2, -1)
            hidden = hidden + F.linear(F.silu(gate).mul_(up), layer.down)
        return hidden

    def _attention(self, number: int, qkv_TD: Tensor, run: Pass) -> Tensor:
        step, heads, keys = run.step, self.shape.heads, self.shape.kv_heads
        qkv = qkv_TD.view(len(qkv_TD), heads + 2 * keys, self.shape.head_dim)
        qk, values_TKd = qkv[:, : heads + keys], qkv[:, heads + keys :]
        # rotate_half(x) * sin is a roll by half a head, with the sign kept in the sine table
        qk = torch.addcmul(qk * run.cos, qk.roll(self.shape.head_dim // 2, -1), run.sin)
        run.cache.write(number, step.rows, qk[:, heads:], values_TKd)
        parts = []
        if step.decoding:
            parts.append(self._decode(number, qk[: step.decoding, :heads], step, run.cache))
        for chunk in step.chunks:
            parts.append(self._prefill(number, qk[chunk.start : chunk.start + chunk.count, :heads], chunk, run.cache))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(self, number: int, queries_BHd: Tensor, step: Step, cache: KVCache) -> Tensor:
        """One query each. So keys times query is faster than query times transposed keys, and far faster than sdpa."""
        batch, kv_heads, width = step.decoding, self.shape.kv_heads, self.shape.head_dim
        keys, values = cache.front(number, batch, step.longest)
        queries = queries_BHd.reshape(batch * kv_heads, -1, width).transpose(1, 2)
        scores = torch.bmm(keys, queries).view(batch, kv_heads, step.longest, -1).transpose(2, 3)
        assert step.mask is not None
        weights = torch.add(step.mask[:, None, None], scores, alpha=width**-0.5).softmax(-1).to(self.dtype)
        return torch.bmm(weights.reshape(batch * kv_heads, -1, step.longest), values).view(batch, -1)

    def _prefill(self, number: int, queries_THd: Tensor, chunk: Chunk, cache: KVCache) -> Tensor:
        length = chunk.position + chunk.count
        keys, values = cache.slot(number, chunk.slot, length)
        mask = None
        if chunk.position:
            mask = torch.ones(chunk.count, length, dtype=torch.bool, device=self.device).tril_(chunk.position)
        attended_HTd = F.scaled_dot_product_attention(
            queries_THd.transpose(0, 1)[None], keys[None], values[None],
            attn_mask=mask, is_causal=mask is None, enable_gqa=self.shape.kv_heads != self.shape.heads,
        )[0]  # fmt: skip
        return attended_HTd.transpose(0, 1).reshape(chunk.count, -1)

    def _rms(self, hidden_TD: Tensor, weight_D: Tensor) -> Tensor:
        return F.rms_norm(hidden_TD, weight_D.shape, weight_D, self.shape.rms_eps)


def _layer(tensors: dict[str, Tensor], number: int) -> Layer:
    """Takes the block's tensors out of the dict, so that the parts are freed as the fused copies are made."""
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
