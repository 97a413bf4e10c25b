"""The kernels in the Triton language, against torch's attention over the same blocks: on a GPU, or interpreted.

`make test-triton` installs triton beside .venv, runs all of this in the interpreter, and compiles the kernels for a GPU
that need not be there. Where triton is not installed everything here is skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from services.llama.engine.attention import KeysValues, PagedAttention
from services.llama.engine.batch import Batch
from services.llama.engine.blocks import BLOCK, blocks_for
from services.llama.engine.cuda import CudaLlama
from services.llama.engine.device_batch import DeviceBatch
from services.llama.engine.graphs import CudaCapture, eager
from services.llama.engine.kv_cache import KVCache
from services.llama.engine.llama import Llama
from tests.dense_attention import DenseAttention
from tests.paged_steps import Texts
from ziya.model.layout import LlamaShape
from ziya.model.llama import load_llama

pytest.importorskip("triton", reason="triton is not installed: torch's CUDA builds bring it, `make test-triton` too")
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from services.llama.engine.paged_attention import TritonAttention

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
runs = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="neither a GPU nor TRITON_INTERPRET=1: see make test-triton"
)
BLOCKS, CONTEXT = 24, 1024
# heads, key/value heads, head dim: groups and widths that are no powers of two; one for all
CASES = [((6, 2, 24), torch.float32), ((4, 1, 64), torch.bfloat16)]


def llama_shape(heads: int, kv_heads: int, width: int) -> LlamaShape:
    return LlamaShape(
        hidden=heads * width, layers=2, heads=heads, kv_heads=kv_heads, head_dim=width, intermediate=32, vocab=300,
        rms_eps=1e-5, rope_theta=10000.0, max_positions=CONTEXT,
    )  # fmt: skip


def rotations(width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(CONTEXT), 10000.0 ** -(torch.arange(0, width, 2) / width))
    sine = angles.sin()
    tables = torch.cat((angles.cos(),) * 2, -1), torch.cat((-sine, sine), -1)
    return tables[0].to(DEVICE, dtype), tables[1].to(DEVICE, dtype)


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps bfloat16 as 16-bit integers and would multiply those (Triton's documentation: convert)."""
    if not INTERPRETED:
        return
    multiply = InterpreterBuilder.create_dot

    def create_dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *others: Any) -> TensorHandle:
        if a.dtype == tl.bfloat16:
            a, b = self.cast_impl(a, tl.float32), self.cast_impl(b, tl.float32)
        return multiply(self, a, b, *others)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@dataclass
class Pair:
    """Triton's kernels and torch's attention, each with a cache of its own that holds the same."""

    shape: LlamaShape
    dtype: torch.dtype
    processors: int

    def __post_init__(self) -> None:
        tables = rotations(self.shape.head_dim, self.dtype)
        self.ours = TritonAttention(self.shape, tables, self.processors)
        self.rotate = DenseAttention(self.shape, tables)
        self.torch = PagedAttention(self.shape)
        self.cache, self.expected_cache = (KVCache.empty(self.shape, BLOCKS + 1, self.dtype, DEVICE) for _ in range(2))
        self.generator = torch.Generator().manual_seed(1)

    def step(self, batch: Batch, rows: DeviceBatch, layer: int = 1) -> tuple[Tensor, Tensor]:
        """Attended states of both for the batch's rows; `rows` may have room for more."""
        shape, count = self.shape, len(rows.positions_T)
        qkv_TD = torch.randn(count, (shape.heads + 2 * shape.kv_heads) * shape.head_dim, generator=self.generator)
        qkv_TD = qkv_TD.to(DEVICE, self.dtype)
        queries = self.ours.store(layer, qkv_TD, rows, self.cache)
        attended = self.ours.attend(layer, queries, rows, self.cache)[: len(batch.positions_T)]
        turned = self.rotate.store(0, qkv_TD, rows, self.expected_cache)[: len(attended)]  # layer 0 is a scratch pad
        places = rows.places_T[: len(attended)].long()
        keys, values = (
            part[0][places // BLOCK, :, places % BLOCK]
            for part in (self.expected_cache.keys, self.expected_cache.values)
        )
        cached = KeysValues(self.expected_cache.keys[layer], self.expected_cache.values[layer])
        plan = self.torch.plan(batch, DEVICE)
        return attended, self.torch.attend(plan, turned, KeysValues(keys, values), cached)


@runs
@pytest.mark.parametrize("processors", [1, 64], ids=["whole", "in parts"])
@pytest.mark.parametrize(("heads", "dtype"), CASES, ids=str)
def test_ragged_steps_are_torchs(heads: tuple[int, int, int], dtype: torch.dtype, processors: int) -> None:
    """Prompts in chunks, decoding, and guesses to verify, together in steps, over blocks that lie scattered."""
    pair = Pair(llama_shape(*heads), dtype, processors)
    close = 1e-5 if dtype == torch.float32 else 2e-2
    for _, batch in Texts([70, 16, 1, 25], BLOCKS, seed=processors).random_steps():
        attended, expected = pair.step(batch, DeviceBatch.of(batch, DEVICE))
        torch.testing.assert_close(attended, expected, atol=close, rtol=close)
    torch.testing.assert_close(pair.cache.keys[1], pair.expected_cache.keys[1], atol=close, rtol=close)
    torch.testing.assert_close(pair.cache.values[1], pair.expected_cache.values[1], atol=0, rtol=0)
    assert not pair.cache.keys[0].any()


@runs
@pytest.mark.parametrize("processors", [1, 64], ids=["whole", "in parts"])
def test_a_filled_up_step_touches_nothing_but_the_spare_block(processors: int) -> None:
    """As a graph runs it: fewer sequences than it has room for, and tables as wide as the context."""
    pair = Pair(llama_shape(2, 2, 16), torch.float32, processors)
    texts = Texts([200, 37, 90], BLOCKS)
    _, batch = texts.step({0: 190, 1: 36, 2: 64})
    pair.step(batch, DeviceBatch.of(batch, DEVICE))
    room = DeviceBatch(8, 8, blocks_for(CONTEXT), 1, DEVICE)
    for counts in ({0: 1, 1: 1, 2: 1}, {2: 1}, {0: 1, 2: 1}):
        _, batch = texts.step(counts)
        room.fill(batch, BLOCKS)
        attended, expected = pair.step(batch, room)
        torch.testing.assert_close(attended, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pair.cache.keys[1, :BLOCKS], pair.expected_cache.keys[1, :BLOCKS], atol=1e-5, rtol=1e-5)
    assert torch.equal(pair.cache.values[1, :BLOCKS], pair.expected_cache.values[1, :BLOCKS])
    assert pair.cache.keys[1, BLOCKS].any()


@runs
def test_large_scores_neither_overflow_nor_vanish() -> None:
    """One key outweighs all others by far, in a part of its own: the parts' largest scores differ by thousands."""
    pair = Pair(llama_shape(1, 1, 16), torch.float32, 64)
    texts = Texts([150], BLOCKS)
    _, batch = texts.step({0: 149})
    pair.step(batch, DeviceBatch.of(batch, DEVICE))
    _, batch = texts.step({0: 1})
    rows = DeviceBatch.of(batch, DEVICE)
    block = int(batch.tables_BN[0, 1])
    queries = torch.ones(1, 1, 16, device=DEVICE)
    pair.cache.keys[1, block, 0, 3] = 1000.0
    attended = pair.ours.attend(1, queries, rows, pair.cache)
    torch.testing.assert_close(attended[0], pair.cache.values[1, block, 0, 3])


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes the compiler's place")
def test_kernels_compile_for_a_gpu_that_need_not_be_there() -> None:
    """Every variant of the 13B shape for compute capability 9.0: in a process of its own, as it may take a minute."""
    done = subprocess.run([sys.executable, "-m", "tests.compiled_kernels"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 10, done.stdout


@runs
@pytest.mark.parametrize("processors", [1, 64], ids=["whole", "in parts"])
@torch.inference_mode()
def test_a_model_with_these_kernels_is_the_plain_one(tiny_checkpoint: Path, processors: int) -> None:
    """On a GPU, decode steps are captured and replayed."""

    def attention(shape: LlamaShape, tables: tuple[Tensor, Tensor]) -> TritonAttention:
        return TritonAttention(shape, tables, processors)

    capture = eager if INTERPRETED else CudaCapture()
    ours = CudaLlama(load_llama(tiny_checkpoint, device=DEVICE), 256, most=3, attention=attention, capture=capture)
    plain = Llama(load_llama(tiny_checkpoint, device=DEVICE), 256)
    caches = ours.new_cache(BLOCKS), plain.new_cache(BLOCKS)
    for ids, batch in Texts([40, 3, 19, 8], BLOCKS).random_steps():
        given = replace(batch, hidden_TD=plain.embed(ids.to(DEVICE)))
        hidden, expected = ours.forward(given, caches[0]), plain.forward(given, caches[1])
        torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=1e-4)
