"""LLaMA on a CPU in compiled code: the same model as `llama.py`, one call into C++ a step.

The layers' matrices are packed into the library's own layout, in float32, bfloat16 or 8-bit integers, and torch's
copies are let go; embedding and projection stay with torch. Hidden states are float32 whatever the weights
are. Keys lie in a block with the dimensions of 16 positions side by side (`kernels/attention.h`).
"""

from __future__ import annotations

import ctypes
import weakref

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from services.llama.engine import kernels
from services.llama.engine.batch import AdapterRows, Batch
from services.llama.engine.kernels import DOWN, GATE_UP, OUT, QKV
from services.llama.engine.kv_cache import KVCache
from services.llama.engine.lora import LoraAdapter
from ziya.model.layout import LlamaShape
from ziya.model.llama import LlamaWeights

# where each projection goes: a matrix of the layer, and which part of it
SITES = {
    "q": (QKV, 0, "self_attn.q_proj"),
    "k": (QKV, 1, "self_attn.k_proj"),
    "v": (QKV, 2, "self_attn.v_proj"),
    "o": (OUT, 0, "self_attn.o_proj"),
    "gate": (GATE_UP, 0, "mlp.gate_proj"),
    "up": (GATE_UP, 1, "mlp.up_proj"),
    "down": (DOWN, 0, "mlp.down_proj"),
}
RANK_STEP = 16  # registers hold 16 numbers at most


def can_run(shape: LlamaShape, quantise: str = "none") -> bool:
    """Whether the compiled code is here, runs on this processor, and takes a model of this shape."""
    step = 64 if quantise == "int4" else 32
    even = not (shape.hidden % step or shape.head_dim % 16 or shape.intermediate % step)
    return even and kernels.library() is not None


class CpuLlama:
    """Takes `weights` over. `quantise` is "none", "int8" (a scale an output) or "int4" (one for 64 inputs; head: int8).

    With quantised weights rows become 8-bit integers as they come, with a scale each. Without `library` it is the best
    one that runs here.
    """

    def __init__(
        self,
        weights: LlamaWeights,
        context: int,
        threads: int,
        quantise: str = "none",
        library: ctypes.CDLL | None = None,
    ) -> None:
        library = library or kernels.library()
        assert library is not None, "ask can_run first"
        self.shape, self._library = weights.shape, library
        self._embedding = weights.tensors["model.embed_tokens.weight"]
        self.dtype, self.device = self._embedding.dtype, self._embedding.device
        self._projection = weights.projection_weight.float(), weights.projection_bias.float()
        self._rotations = _rotations(self.shape.head_dim, self.shape.rope_theta, context)
        plain = kernels.FLOAT32 if self.dtype == torch.float32 else kernels.BFLOAT16
        kind = {"none": plain, "int8": kernels.INT8, "int4": kernels.INT4}[quantise]
        self.cache_dtype = torch.float32 if kind == kernels.FLOAT32 else torch.bfloat16
        self._model = library.ziya_new(ctypes.byref(self._native_shape(kind, context, threads)))
        if not self._model:
            raise MemoryError("no memory for the model")
        weakref.finalize(self, library.ziya_free, self._model)
        self._logits_SV = self._room_for_logits(1)
        self._adapters: weakref.WeakKeyDictionary[LoraAdapter, int] = weakref.WeakKeyDictionary()
        self._load(weights.tensors)

    def new_cache(self, blocks: int) -> KVCache:
        return KVCache.empty(self.shape, blocks, self.cache_dtype, self.device)

    def embed(self, ids_T: Tensor) -> Tensor:
        return F.embedding(ids_T, self._embedding).float()

    def project(self, visual_QD: Tensor) -> Tensor:
        return F.linear(visual_QD.float(), *self._projection)

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """As the protocol says. `batch.hidden_TD` may be overwritten."""
        hidden_TD = batch.hidden_TD.float().contiguous()
        wanted_B = np.diff(batch.starts_B1) if batch.wanted_B is None else batch.wanted_B
        ranges = [self._range(rows) for rows in batch.adapters]
        step = kernels.Step(
            rows=len(hidden_TD),
            sequences=batch.sequences,
            starts=batch.starts_B1.ctypes.data,
            lengths=batch.lengths_B.ctypes.data,
            tables=batch.tables_BN.ctypes.data,
            wanted=wanted_B.ctypes.data,
            table_width=batch.tables_BN.shape[1],
            blocks=cache.blocks,
            hidden=hidden_TD.data_ptr(),
            keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(),
            adapters=(kernels.AdapterRows * len(ranges))(*ranges),
            adapter_ranges=len(ranges),
        )
        wanted = self._library.ziya_forward(self._model, ctypes.byref(step))
        _check(min(wanted, 0))
        return hidden_TD if wanted == len(hidden_TD) else hidden_TD[:wanted]

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """As the protocol says; the next call may write into the same memory."""
        hidden_SD, rows = hidden_SD.contiguous(), len(hidden_SD)
        if rows != len(self._logits_SV):
            self._logits_SV = self._room_for_logits(rows)
        _check(self._library.ziya_logits(self._model, hidden_SD.data_ptr(), rows, self._logits_SV.data_ptr()))
        return self._logits_SV

    def _room_for_logits(self, rows: int) -> Tensor:
        """Rows are filled up to whole tiles."""
        tile = self._library.ziya_tile()
        return torch.empty(rows, -(-self.shape.vocab // tile) * tile)[:, : self.shape.vocab]

    def _native_shape(self, kind: int, context: int, threads: int) -> kernels.Shape:
        shape, (cosines, sines) = self.shape, self._rotations
        return kernels.Shape(
            kind, shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, shape.intermediate,
            shape.vocab, context, threads, shape.rms_eps, cosines.data_ptr(), sines.data_ptr(),
        )  # fmt: skip

    def _load(self, tensors: dict[str, Tensor]) -> None:
        """Takes each tensor out of the dict, so that its memory is free when the next one is packed."""
        for number in range(self.shape.layers):
            name = f"model.layers.{number}."
            for which, norm in enumerate(("input_layernorm", "post_attention_layernorm")):
                self._vector(number, which, tensors.pop(f"{name}{norm}.weight"))
            for site, part, projection in SITES.values():
                self._matrix(number, site, part, tensors.pop(f"{name}{projection}.weight"))
        self._vector(-1, 0, tensors.pop("model.norm.weight"))
        self._matrix(-1, 0, 0, tensors.pop("lm_head.weight"))

    def _vector(self, layer: int, which: int, values_D: Tensor) -> None:
        kept = values_D.float().contiguous()
        _check(self._library.ziya_vector(self._model, layer, which, kept.data_ptr()))

    def _matrix(self, layer: int, site: int, part: int, weights: Tensor) -> None:
        kept = weights.contiguous()
        _check(self._library.ziya_matrix(self._model, layer, site, part, kept.data_ptr(), kept.dtype == torch.bfloat16))

    def _range(self, rows: AdapterRows) -> kernels.AdapterRows:
        if rows.adapter not in self._adapters:
            self._adapters[rows.adapter] = self._pack(rows.adapter)
        return kernels.AdapterRows(self._adapters[rows.adapter], rows.start, rows.stop)

    def _pack(self, adapter: LoraAdapter) -> int:
        packed: int = self._library.ziya_adapter()
        weakref.finalize(adapter, self._library.ziya_adapter_free, packed)
        for number, projections in enumerate(adapter.layers):
            for name, change in projections.items():
                site, part, _ = SITES[name]
                rank = -(-len(change.down) // RANK_STEP) * RANK_STEP
                room = rank - len(change.down)
                down = F.pad(change.down, (0, 0, 0, room)).to(self.cache_dtype).contiguous()
                up = F.pad(change.up * change.scale, (0, room)).to(self.cache_dtype).contiguous()
                _check(
                    self._library.ziya_adapt(
                        self._model, packed, number, site, part, rank, down.data_ptr(), up.data_ptr()
                    )
                )
        return packed


def _check(code: int) -> None:
    if code:
        raise MemoryError("no memory for a step of the model")


def _rotations(width: int, theta: float, context: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 [context, width / 2] each."""
    frequencies = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.outer(torch.arange(context, dtype=torch.float32), frequencies)
    return angles.cos().contiguous(), angles.sin().contiguous()
