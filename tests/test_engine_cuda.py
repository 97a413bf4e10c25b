"""The whole engine on a GPU: transformers' answers alone, in a crowd, with reuse, guesses and little memory.

`make test-gpu` runs this and the kernels' tests; without a GPU all of it is skipped. It has not been run yet.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.llama.engine.cuda import CudaLlama
from services.llama.engine.engine import EngineOptions, NativeEngine
from services.llama.engine.models import choose_model
from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Prompt
from tests.engines import QUERIES, VOCABULARY, WIDTH, Answer, ask, random_prompt, reference, settled
from tests.tiny import build_checkpoint
from ziya.errors import Cancelled
from ziya.model.llama import load_llama

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU on this machine")


@pytest.fixture(scope="module", params=["grouped, untied", "plain, tied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    grouped = request.param.startswith("grouped")
    return build_checkpoint(tmp_path_factory.mktemp("c") / "c", tied=not grouped, kv_heads=2 if grouped else 4, seed=3)


@asynccontextmanager
async def engine_on_gpu(
    checkpoint: Path, dtype: torch.dtype = torch.float32, **options: Any
) -> AsyncIterator[NativeEngine]:
    """Float32 products are exact by default: torch takes TF32 only when asked."""
    engine = NativeEngine(load_llama(checkpoint, dtype=dtype, device="cuda"), EngineOptions(**options))
    try:
        yield engine
    finally:
        await engine.close()


def text(number: int, length: int) -> tuple[int, ...]:
    rng = random.Random(number)
    return tuple(rng.randrange(3, VOCABULARY) for _ in range(length))


async def asked(engine: NativeEngine, prompt: Prompt, tokens: int = 40) -> Answer:
    return await ask(engine, prompt, Sampling(max_tokens=tokens, ignore_eos=True))


def test_a_gpu_has_a_model_of_its_own(checkpoint: Path) -> None:
    weights = load_llama(checkpoint, device="cuda")
    model, _ = choose_model(weights, 128, kernels="auto", quantise="none", threads=0, slots=2)
    assert isinstance(model, CudaLlama)


@pytest.mark.parametrize("images", [0, 1, 2])
async def test_a_lone_greedy_answer_is_transformers(checkpoint: Path, images: int) -> None:
    prompt = random_prompt(random.Random(images), images)
    async with engine_on_gpu(checkpoint) as engine:
        answer = await asked(engine, prompt)
    assert answer.ids == reference(checkpoint, prompt, 40, eos_token_id=None)


@pytest.mark.parametrize("slots", [1, 5, 40])
async def test_greedy_answers_in_a_crowd_are_transformers(checkpoint: Path, slots: int) -> None:
    """Requests join and leave at every step, so graphs of all sizes are used, filled up and not."""
    rng = random.Random(7)
    prompts = [random_prompt(rng) for _ in range(48)]
    lengths = [rng.randint(1, 50) for _ in prompts]
    async with engine_on_gpu(checkpoint, slots=slots, prefill_tokens=16) as engine:

        async def join(number: int) -> list[int]:
            for _ in range(number % 6):
                await asyncio.sleep(0.002)
            return (await asked(engine, prompts[number], lengths[number])).ids

        answers = await asyncio.gather(*map(join, range(len(prompts))))
    for number, answer in enumerate(answers):
        assert answer == reference(checkpoint, prompts[number], lengths[number], eos_token_id=None), number


async def test_reuse_guesses_and_too_little_memory_change_no_answer(checkpoint: Path) -> None:
    rng = random.Random(3)
    images = [np.random.default_rng(number).standard_normal((QUERIES, WIDTH)).astype(np.float16) for number in range(3)]
    prompts = [
        Prompt((text(number % 3, 25), text(rng.randrange(9), rng.randint(1, 30))), (images[number % 3],))
        for number in range(30)
    ]
    options = {"slots": 8, "prefill_tokens": 11, "kv_blocks": 24, "lookup_tokens": 4}
    async with engine_on_gpu(checkpoint, **options) as engine:
        answers = await asyncio.gather(*(asked(engine, prompt, 60) for prompt in prompts))
        stats = engine.stats()
    assert stats.cached_tokens > 0
    assert stats.preempted > 0
    assert stats.drafted > 0
    for number, (answer, prompt) in enumerate(zip(answers, prompts, strict=True)):
        assert answer.ids == reference(checkpoint, prompt, 60, eos_token_id=None), number


async def test_long_answers_are_split_over_processors(checkpoint: Path) -> None:
    prompt = Prompt((text(1, 300),))
    async with engine_on_gpu(checkpoint) as engine:
        answer = await asked(engine, prompt, 200)
    assert answer.ids == reference(checkpoint, prompt, 200, eos_token_id=None)


async def test_cancelled_requests_leave_no_blocks_held(checkpoint: Path) -> None:
    async with engine_on_gpu(checkpoint, slots=4) as engine:
        streams = [engine.submit(Prompt((text(n, 20),)), Sampling(max_tokens=400, ignore_eos=True)) for n in range(9)]
        await anext(streams[0])
        for stream in streams:
            stream.cancel()
            with pytest.raises(Cancelled):
                async for _ in stream:
                    pass
        await settled(engine)
        assert engine.stats().blocks_used == 0


async def test_bfloat16_says_mostly_what_float32_does(checkpoint: Path) -> None:
    """Rounding turns a close choice now and then, and all that follows with it: so of each answer the beginning."""
    prompts = [Prompt((text(number, 30),)) for number in range(16)]
    async with engine_on_gpu(checkpoint, torch.bfloat16) as engine:
        answers = await asyncio.gather(*(asked(engine, prompt, 4) for prompt in prompts))
    same = [
        answer.ids == reference(checkpoint, prompt, 4, eos_token_id=None)
        for answer, prompt in zip(answers, prompts, strict=True)
    ]
    assert sum(same) >= len(same) // 2
