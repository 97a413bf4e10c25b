"""The GPU's model on a CPU: its layers, static buffers and filled-up steps; work is run instead of captured."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from services.llama.engine.batch import AdapterRows
from services.llama.engine.blocks import BLOCK, blocks_for
from services.llama.engine.cuda import CudaLlama
from services.llama.engine.device_batch import DeviceBatch
from services.llama.engine.graphs import LARGEST, DecodeGraphs, Work, eager, sizes
from services.llama.engine.kv_cache import KVCache
from services.llama.engine.llama import Llama
from services.llama.engine.lora import LoraAdapter, LowRank
from services.llama.engine.sampling import Sampling
from tests.dense_attention import DenseAttention
from tests.engines import ask, engine_on, random_prompt, reference
from tests.paged_steps import Texts, positions_of
from tests.tiny import build_checkpoint
from ziya.model.llama import LlamaWeights, load_llama

CONTEXT, BLOCKS = 128, 40
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["grouped, untied", "plain, tied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    grouped = request.param.startswith("grouped")
    return build_checkpoint(tmp_path_factory.mktemp("c") / "c", tied=not grouped, kv_heads=2 if grouped else 4, seed=3)


@dataclass
class Replays:
    """Counts: runs the work as `eager` does."""

    runs: list[int] = field(default_factory=list)

    def __call__(self, work: Work) -> Work:
        number = len(self.runs)
        self.runs.append(0)

        def replay() -> None:
            self.runs[number] += 1
            work()

        return replay


def both(checkpoint: Path, most: int, capture: Callable[[Work], Work] = eager) -> tuple[CudaLlama, Llama]:
    made = CudaLlama(load_llama(checkpoint), CONTEXT, most=most, attention=DenseAttention, capture=capture)
    return made, Llama(load_llama(checkpoint), CONTEXT)


def test_sizes_are_close_where_batches_are_small() -> None:
    assert sizes(1) == (1,)
    assert sizes(3) == (1, 2, 4)
    assert sizes(32) == (1, 2, 4, 8, 16, 24, 32)
    assert sizes(33)[-2:] == (32, 40)
    assert sizes(4096)[-1] == LARGEST


@torch.inference_mode()
def test_whatever_the_steps_are_the_hidden_states_are_those_of_the_plain_model(checkpoint: Path) -> None:
    """Seven texts and graphs of up to four: larger steps that only decode run without one."""
    counted = Replays()
    ours, plain = both(checkpoint, 3, counted)
    cache, expected_cache = ours.new_cache(BLOCKS), plain.new_cache(BLOCKS)
    largest = 0
    for ids, batch in Texts([70, 33, 16, 1, 50, 29, 44], BLOCKS).random_steps():
        hidden = ours.forward(replace(batch, hidden_TD=ours.embed(ids)), cache)
        expected = plain.forward(replace(batch, hidden_TD=plain.embed(ids)), expected_cache)
        torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.logits(hidden), plain.logits(expected), atol=1e-4, rtol=1e-4)
        if len(ids) == batch.sequences:
            largest = max(largest, batch.sequences)
    assert min(counted.runs) > 0, "each size was used"
    assert largest > 4
    torch.testing.assert_close(cache.keys[:, :BLOCKS], expected_cache.keys, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cache.values[:, :BLOCKS], expected_cache.values, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_adapters_and_other_caches_are_served_without_a_graph(checkpoint: Path) -> None:
    counted = Replays()
    ours, plain = both(checkpoint, 4, counted)
    first, second = ours.new_cache(BLOCKS), plain.new_cache(BLOCKS)
    hidden = ours.shape.hidden
    change = {"o": LowRank(torch.ones(2, hidden), torch.ones(hidden, 2), 0.5)}
    adapter = LoraAdapter("a", (change, change), b"a")
    ids, batch = Texts([9], BLOCKS).step({0: 1})
    batch = replace(batch, hidden_TD=ours.embed(ids))
    adapted = ours.forward(replace(batch, adapters=(AdapterRows(adapter, 0, 1),)), first)
    torch.testing.assert_close(adapted, plain.forward(replace(batch, adapters=(AdapterRows(adapter, 0, 1),)), second))
    torch.testing.assert_close(ours.forward(batch, plain.new_cache(BLOCKS)), plain.forward(batch, second))
    assert not torch.equal(adapted, plain.forward(batch, second))
    assert sum(counted.runs) == 0
    ours.forward(batch, first)
    assert sum(counted.runs) == 1


def test_a_graph_sees_the_same_memory_at_every_step() -> None:
    """Addresses do not change, and neither do shapes; what is filled up is one row at position 0 of the spare block."""
    seen: list[tuple[object, ...]] = []
    spare = BLOCKS

    def step(hidden_BD: Tensor, rows: DeviceBatch) -> Tensor:
        parts = rows.positions_T, rows.places_T, rows.starts_B1, rows.lengths_B, rows.tables_BN, hidden_BD
        seen.append(tuple((part.data_ptr(), part.shape) for part in parts))
        assert rows.starts_B1.tolist() == list(range(9))
        assert rows.positions_T[5:].tolist() == [0] * 3
        assert rows.places_T[5:].tolist() == [spare * BLOCK] * 3
        assert rows.lengths_B[5:].tolist() == [1] * 3
        assert rows.tables_BN[5:, 0].tolist() == [spare] * 3
        return hidden_BD * 2

    graphs = DecodeGraphs(step, eager, torch.empty(0, 6), most=8, blocks=blocks_for(CONTEXT), spare=spare)
    texts = Texts([20, 40, 60, 80, 100], BLOCKS)
    texts.step(dict(enumerate([7, 33, 55, 60, 90])))
    for _ in range(3):
        _, batch = texts.step(dict.fromkeys(range(5), 1))
        hidden = torch.randn(5, 6)
        assert torch.equal(graphs.run(replace(batch, hidden_TD=hidden)), hidden * 2)
    assert len(seen) == 3
    assert len(set(seen)) == 1


def test_a_step_of_fewer_sequences_leaves_nothing_of_the_last_one() -> None:
    """Rooms that were taken in the step before are nobody's again."""
    room = DeviceBatch(8, 8, blocks_for(CONTEXT), 1, CPU)
    texts = Texts([30] * 8, BLOCKS)
    texts.step(dict.fromkeys(range(8), 17))
    room.fill(texts.step(dict.fromkeys(range(8), 1))[1], BLOCKS)
    assert room.lengths_B.tolist() == [18] * 8
    room.fill(texts.step({3: 1})[1], BLOCKS)
    assert room.lengths_B.tolist() == [19] + [1] * 7
    assert room.places_T[1:].tolist() == [BLOCKS * BLOCK] * 7
    assert room.tables_BN[1:, 0].tolist() == [BLOCKS] * 7


def test_device_arrays_say_where_rows_go() -> None:
    for _, batch in Texts([70, 33, 16, 1], BLOCKS, seed=2).random_steps():
        rows = DeviceBatch.of(batch, CPU)
        for sequence in range(batch.sequences):
            start, stop = rows.starts_B1[sequence : sequence + 2].tolist()
            expected = positions_of(batch, sequence)[-(stop - start) :]
            assert rows.places_T[start:stop].tolist() == expected.tolist()
        assert rows.positions_T.tolist() == batch.positions_T.tolist()
        assert rows.tables_BN.tolist() == batch.tables_BN.tolist()
        assert rows.most_rows == int(np.diff(batch.starts_B1).max())
        addresses = rows.positions_T, rows.places_T, rows.starts_B1, rows.lengths_B, rows.tables_BN
        assert all((part.data_ptr() - rows.positions_T.data_ptr()) % 16 == 0 for part in addresses)


def test_graphs_take_what_only_decodes() -> None:
    graphs = DecodeGraphs(lambda hidden, _: hidden, eager, torch.empty(0, 6), most=2, blocks=8, spare=BLOCKS)
    texts = Texts([60, 60, 60], BLOCKS)
    assert not graphs.takes(texts.step({0: 20, 1: 1})[1])
    assert graphs.takes(texts.step({0: 1})[1])
    assert graphs.takes(texts.step({0: 1, 1: 1})[1])
    assert not graphs.takes(texts.step({0: 1, 1: 1, 2: 1})[1])


def test_the_spare_block_is_beyond_the_ones_that_are_handed_out(checkpoint: Path) -> None:
    cache: KVCache = both(checkpoint, 2)[0].new_cache(BLOCKS)
    assert cache.blocks == BLOCKS + 1


async def test_an_engine_that_runs_this_model_answers_as_transformers(checkpoint: Path) -> None:
    """In a crowd, with guesses and too little memory; only the choice of the model is made here."""

    def choose(weights: LlamaWeights, context: int, *, threads: int, **_: object) -> tuple[CudaLlama, int]:
        return CudaLlama(weights, context, most=5, attention=DenseAttention, capture=eager), threads

    rng = random.Random(5)
    prompts = [random_prompt(rng) for _ in range(12)]
    async with engine_on(
        checkpoint, choose=choose, slots=8, prefill_tokens=16, kv_blocks=24, lookup_tokens=3
    ) as engine:
        asking = (ask(engine, prompt, Sampling(max_tokens=40, ignore_eos=True)) for prompt in prompts)
        answers = await asyncio.gather(*asking)
        stats = engine.stats()
    assert stats.preempted > 0
    assert stats.drafted > 0
    for answer, prompt in zip(answers, prompts, strict=True):
        assert answer.ids == reference(checkpoint, prompt, 40, eos_token_id=None)
