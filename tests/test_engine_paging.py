"""Paged keys and values: answers stay transformers' own whatever is reused, given up or computed in pieces."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.llama.engine.blocks import BLOCK
from services.llama.engine.engine import NativeEngine
from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Prompt
from tests.engines import (
    BOTH,
    DEFAULTS,
    QUERIES,
    VOCABULARY,
    WIDTH,
    Answer,
    ask,
    engine_on,
    random_prompt,
    reference,
    settled,
)
from ziya.errors import Cancelled, PromptTooLong, ZiyaError

pytestmark = BOTH


@pytest.fixture(autouse=True)
def every_engine_here(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFAULTS, "kernels", kernels)


def image(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal((QUERIES, WIDTH)).astype(np.float16)


def text(number: int, length: int) -> tuple[int, ...]:
    rng = random.Random(number)
    return tuple(rng.randrange(3, VOCABULARY) for _ in range(length))


async def both(engine: NativeEngine, prompts: list[Prompt], tokens: int = 20) -> list[Answer]:
    return [await ask(engine, prompt, Sampling(max_tokens=tokens, ignore_eos=True)) for prompt in prompts]


async def test_a_follow_up_on_an_image_computes_only_what_is_new(tiny_checkpoint: Path) -> None:
    """Its prompt holds the first question and answer; all their full blocks are reused, the answer's too."""
    async with engine_on(tiny_checkpoint) as engine:
        first = Prompt((text(0, 20), text(1, 9)), (image(0),))
        answer = await ask(engine, first, Sampling(max_tokens=40, ignore_eos=True))
        assert answer.usage.cached_tokens == 0
        follow_up = Prompt((first.pieces[0], first.pieces[1] + tuple(answer.ids) + text(2, 5)), first.visuals)
        before = engine.stats()
        second = await ask(engine, follow_up, Sampling(max_tokens=20))
        after = engine.stats()
    # the last token of the first answer was never computed itself
    known = (first.positions + 39) // BLOCK * BLOCK
    assert second.usage.cached_tokens == known
    assert after.cached_tokens - before.cached_tokens == known
    assert second.ids == reference(tiny_checkpoint, follow_up, 20)


async def test_another_question_about_the_same_image_reuses_its_blocks(tiny_checkpoint: Path) -> None:
    """The image came anew: an equal array, not the same one. Another image, at the same place, shares nothing."""
    async with engine_on(tiny_checkpoint) as engine:
        prompts = [Prompt((text(0, 14), text(number, 10)), (image(0).copy(),)) for number in (1, 2)]
        other = Prompt((text(0, 14), text(2, 10)), (image(1),))
        answers = await both(engine, [*prompts, other])
    assert [answer.usage.cached_tokens for answer in answers] == [0, BLOCK, 0]
    for answer, prompt in zip(answers, [*prompts, other], strict=True):
        assert answer.ids == reference(tiny_checkpoint, prompt, 20, eos_token_id=None)


async def test_a_prompt_that_is_known_whole_computes_its_last_token(tiny_checkpoint: Path) -> None:
    async with engine_on(tiny_checkpoint) as engine:
        prompt = Prompt((text(0, 3 * BLOCK),))
        first, second = await both(engine, [prompt, prompt])
    assert second.usage.cached_tokens == 2 * BLOCK
    assert first.ids == second.ids


async def test_salts_do_not_share(tiny_checkpoint: Path) -> None:
    async with engine_on(tiny_checkpoint) as engine:
        prompt = Prompt((text(0, 50),))
        salts = [b"", b"a", b"b", b"a"]
        answers = await both(engine, [replace(prompt, salt=salt) for salt in salts])
    assert [answer.usage.cached_tokens for answer in answers] == [0, 0, 0, 48]
    assert len({tuple(answer.ids) for answer in answers}) == 1


async def test_reuse_can_be_turned_off(tiny_checkpoint: Path) -> None:
    async with engine_on(tiny_checkpoint, prefix_reuse=False) as engine:
        answers = await both(engine, [Prompt((text(0, 50),))] * 2)
    assert [answer.usage.cached_tokens for answer in answers] == [0, 0]


async def test_answers_are_transformers_when_memory_runs_out(tiny_checkpoint: Path) -> None:
    """Room for two of eight at their longest: they lose their places again and again, and say the same."""
    prompts = [Prompt((text(number, 20), text(9, 7)), (image(number % 2),)) for number in range(8)]
    async with engine_on(tiny_checkpoint, slots=8, kv_blocks=14, prefill_tokens=24) as engine:
        asking = (ask(engine, prompt, Sampling(max_tokens=70, ignore_eos=True)) for prompt in prompts)
        answers = await asyncio.gather(*asking)
        stats = engine.stats()
    assert stats.preempted > 0
    assert (stats.blocks, stats.finished) == (14, 8)
    for answer, prompt in zip(answers, prompts, strict=True):
        assert answer.ids == reference(tiny_checkpoint, prompt, 70, eos_token_id=None)
        assert len(answer.text) > 0


async def test_a_preempted_answer_keeps_its_text_and_its_luck(tiny_checkpoint: Path) -> None:
    sampling = Sampling(temperature=1.0, seed=4, max_tokens=70, ignore_eos=True)
    async with engine_on(tiny_checkpoint) as engine:
        alone = [await ask(engine, Prompt((text(number, 20),)), sampling) for number in range(4)]
    async with engine_on(tiny_checkpoint, kv_blocks=9) as engine:
        crowd = await asyncio.gather(*(ask(engine, Prompt((text(number, 20),)), sampling) for number in range(4)))
        assert engine.stats().preempted > 0
    assert [(answer.ids, answer.text) for answer in crowd] == [(answer.ids, answer.text) for answer in alone]


async def test_reuse_chunks_and_a_crowd_together_are_transformers(tiny_checkpoint: Path) -> None:
    """Prompts of a few beginnings, in chunks of 11 rows, in too little memory, joining at any time."""
    rng = random.Random(3)
    beginnings = [(text(number, 25), image(number)) for number in range(3)]
    prompts = []
    for number in range(30):
        start, visual = rng.choice(beginnings)
        prompts.append(Prompt((start, text(number % 7, rng.randint(1, 30))), (visual,)))
    lengths = [rng.randint(1, 40) for _ in prompts]
    async with engine_on(tiny_checkpoint, slots=6, waiting=64, prefill_tokens=11, kv_blocks=24) as engine:

        async def join(number: int) -> Answer:
            await asyncio.sleep(rng.random() * 0.1)
            return await ask(engine, prompts[number], Sampling(max_tokens=lengths[number]))

        answers = await asyncio.gather(*map(join, range(len(prompts))))
        stats = engine.stats()
    assert stats.cached_tokens > 10 * BLOCK
    assert stats.cached_tokens == sum(answer.usage.cached_tokens for answer in answers)
    for number, answer in enumerate(answers):
        assert answer.ids == reference(tiny_checkpoint, prompts[number], lengths[number]), number


async def test_cancelling_frees_the_blocks_at_once(tiny_checkpoint: Path) -> None:
    async with engine_on(tiny_checkpoint) as engine:
        stream = engine.submit(Prompt((text(0, 100),)), Sampling(max_tokens=400, ignore_eos=True))
        await anext(stream)
        assert engine.stats().blocks_used >= 7
        stream.cancel()
        with pytest.raises(Cancelled):
            async for _ in stream:
                pass
        assert engine.stats().blocks_used == 0
        again = await ask(engine, Prompt((text(0, 100),)), Sampling(max_tokens=2))
    assert again.usage.cached_tokens == 96


async def test_what_can_never_fit_is_refused(tiny_checkpoint: Path) -> None:
    async with engine_on(tiny_checkpoint, kv_blocks=4) as engine:
        with pytest.raises(PromptTooLong, match="5 blocks of 16 positions, and the KV cache has 4"):
            engine.submit(Prompt((text(0, 40),)), Sampling(max_tokens=26))
        answer = await ask(engine, Prompt((text(0, 40),)), Sampling(max_tokens=25, ignore_eos=True))
    assert len(answer.ids) == 25


async def test_no_block_is_lost_whatever_requests_do(tiny_checkpoint: Path) -> None:
    """Few blocks, many requests, each with an end of its own; afterwards the engine answers as ever."""
    rng = random.Random(12)
    async with engine_on(tiny_checkpoint, slots=6, waiting=1000, kv_blocks=16, prefill_tokens=20) as engine:

        async def one() -> None:
            patience, deadline = rng.choice((0, 2, 1000)), time.time() + rng.choice((0.01, 60.0))
            sampling = Sampling(max_tokens=rng.randint(1, 60), ignore_eos=True)
            stream = engine.submit(random_prompt(rng), sampling, deadline)
            try:
                async for delta in stream:
                    patience -= len(delta.ids)
                    if patience < 0:
                        stream.cancel()
            except ZiyaError:
                pass

        await asyncio.gather(*(one() for _ in range(200)))
        await settled(engine)
        assert engine.stats().blocks_used == 0
        prompt = Prompt((text(5, 30),))
        assert (await ask(engine, prompt, Sampling(max_tokens=20))).ids == reference(tiny_checkpoint, prompt, 20)
