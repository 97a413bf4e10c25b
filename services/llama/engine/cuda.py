"""LLaMA on a GPU: `llama.py`'s layers around paged attention in the Triton language, decode steps as CUDA graphs.

Steps that only decode replay a graph; prompts, guesses to verify, and steps with adapters start their kernels one by
one, through the same layers. The cache has one block more than was asked for: graphs are filled up with rows whose
keys and values go there. Everything but the capture itself is tested without a GPU; on one it has not been run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from services.llama.engine.batch import Batch
from services.llama.engine.blocks import blocks_for
from services.llama.engine.device_batch import DeviceBatch
from services.llama.engine.graphs import Capture, CudaCapture, DecodeGraphs
from services.llama.engine.kv_cache import KVCache
from services.llama.engine.llama import Attend, Llama
from ziya.model.layout import LlamaShape
from ziya.model.llama import LlamaWeights


class Attention(Protocol):
    """What a layer does with its cache; `paged_attention.TritonAttention` on a GPU."""

    def store(self, layer: int, qkv_TD: Tensor, rows: DeviceBatch, cache: KVCache) -> Tensor:
        """Puts the rows' keys and values into the cache. Returns the rotated queries [T, H, d]."""

    def attend(self, layer: int, queries_THd: Tensor, rows: DeviceBatch, cache: KVCache) -> Tensor:
        """[T, H * d]: each row over the positions up to its own."""


PROMPT = 32  # rows: more than an attention kernel for decoding takes
MakeAttention = Callable[[LlamaShape, tuple[Tensor, Tensor]], Attention]


class CudaLlama(Llama):
    """Takes `weights` over. For one thread, and for the current device: Triton starts its kernels there.

    Steps of up to `most` requests that decode, or of the next size of a graph, run as graphs.
    """

    def __init__(
        self, weights: LlamaWeights, context: int, *, most: int, attention: MakeAttention, capture: Capture
    ) -> None:
        super().__init__(weights, context)
        self._most, self._blocks, self._capture = most, blocks_for(context), capture
        self._kernels = attention(self.shape, (self._cos, self._sin))
        self._captured: tuple[KVCache, DecodeGraphs] | None = None

    def new_cache(self, blocks: int) -> KVCache:
        """Compiles kernels and captures graphs for it, which takes seconds; those of an earlier cache are let go."""
        cache = KVCache.empty(self.shape, blocks + 1, self.dtype, self.device)

        def step(hidden_BD: Tensor, rows: DeviceBatch) -> Tensor:
            return self._through_layers(hidden_BD, (), self._attend(rows, cache))

        prompt = _prompt(self._embedding.new_zeros(PROMPT, self.shape.hidden), block=blocks)
        with torch.inference_mode():
            step(prompt.hidden_TD, DeviceBatch.of(prompt, self.device))
        graphs = DecodeGraphs(step, self._capture, prompt.hidden_TD, most=self._most, blocks=self._blocks, spare=blocks)
        self._captured = cache, graphs
        return cache

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """As the protocol says; of a step that only decodes, the result is overwritten by the next such step."""
        if self._captured and self._captured[0] is cache and self._captured[1].takes(batch):
            return batch.wanted_of(self._captured[1].run(batch))
        attend = self._attend(DeviceBatch.of(batch, self.device), cache)
        return batch.wanted_of(self._through_layers(batch.hidden_TD, batch.adapters, attend))

    def _attend(self, rows: DeviceBatch, cache: KVCache) -> Attend:
        def attend(layer: int, qkv_TD: Tensor) -> Tensor:
            return self._kernels.attend(layer, self._kernels.store(layer, qkv_TD, rows, cache), rows, cache)

        return attend


def _prompt(hidden_TD: Tensor, block: int) -> Batch:
    """A prompt that compiles the kernels for prompts, before one waits for that. All of it lies in one block."""
    rows = len(hidden_TD)
    return Batch(
        hidden_TD=hidden_TD,
        starts_B1=np.array([0, rows], np.int32),
        lengths_B=np.array([rows], np.int32),
        tables_BN=np.full((1, blocks_for(rows)), block, np.int32),
    )


def cuda_llama(weights: LlamaWeights, context: int, most: int) -> CudaLlama:
    """As it is used: with Triton's kernels and CUDA graphs. The weights must be on the current CUDA device."""
    from services.llama.engine.paged_attention import TritonAttention  # noqa: PLC0415 (only CUDA builds bring triton)

    processors = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count

    def attention(shape: LlamaShape, rotations: tuple[Tensor, Tensor]) -> Attention:
        return TritonAttention(shape, rotations, processors)

    return CudaLlama(weights, context, most=most, attention=attention, capture=CudaCapture())
