"""The native engine: equal to transformers alone and in a crowd, and nothing leaks whatever requests do."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.llama.engine.engine import NativeEngine
from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Prompt
from tests.engines import BOTH, DEFAULTS, ask, engine_on, random_prompt, reference, settled
from tests.tiny import build_checkpoint
from ziya.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    Overloaded,
    PromptTooLong,
    Unavailable,
    ZiyaError,
)

PROMPT = Prompt(((10, 11, 12, 13),))
ENDLESS = Sampling(max_tokens=500, ignore_eos=True)
pytestmark = BOTH


@pytest.fixture(autouse=True)
def every_engine_here(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFAULTS, "kernels", kernels)


@pytest.fixture
async def engine(tiny_checkpoint: Path, every_engine_here: None) -> AsyncIterator[NativeEngine]:
    async with engine_on(tiny_checkpoint, slots=4, waiting=8, prefill_tokens=24) as engine:
        yield engine


@pytest.fixture(scope="module", params=["grouped, untied", "plain, tied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    grouped = request.param.startswith("grouped")
    return build_checkpoint(tmp_path_factory.mktemp("c") / "c", tied=not grouped, kv_heads=2 if grouped else 4, seed=3)


@pytest.mark.parametrize("images", [0, 1, 2])
async def test_a_lone_greedy_answer_is_transformers(checkpoint: Path, images: int) -> None:
    prompt = random_prompt(random.Random(images), images)
    async with engine_on(checkpoint) as engine:
        answer = await ask(engine, prompt, Sampling(max_tokens=40))
    assert answer.ids == reference(checkpoint, prompt, 40)
    assert answer.usage.prompt_tokens == prompt.positions
    assert answer.usage.image_tokens == 4 * images
    assert answer.usage.completion_tokens == len(answer.ids)


async def test_greedy_answers_in_a_crowd_are_transformers(checkpoint: Path) -> None:
    """Requests join and leave at every step; prompts are computed in chunks; sampled neighbours are among them."""
    rng = random.Random(7)
    prompts = [random_prompt(rng) for _ in range(24)]
    lengths = [rng.randint(1, 50) for _ in prompts]
    async with engine_on(checkpoint, slots=5, waiting=64, prefill_tokens=16) as engine:

        async def join(number: int) -> list[int]:
            for _ in range(number % 6):
                await asyncio.sleep(0.002)
            sampling = Sampling(temperature=1.0, seed=1, max_tokens=20) if number % 4 == 3 else None
            return (await ask(engine, prompts[number], sampling or Sampling(max_tokens=lengths[number]))).ids

        answers = await asyncio.gather(*map(join, range(len(prompts))))
    for number, answer in enumerate(answers):
        if number % 4 != 3:
            assert answer == reference(checkpoint, prompts[number], lengths[number]), number


async def test_a_prompt_in_chunks_is_a_prompt_in_one(checkpoint: Path) -> None:
    prompt = random_prompt(random.Random(5), 2, longest=100)
    answers = []
    for chunk in (1, 7, 1000):
        async with engine_on(checkpoint, prefill_tokens=chunk) as engine:
            answers.append((await ask(engine, prompt, Sampling(max_tokens=20))).ids)
    assert answers[0] == answers[1] == answers[2]


async def test_eos_ends_an_answer_unless_ignored(checkpoint: Path) -> None:
    prompt = random_prompt(random.Random(1))
    eos = reference(checkpoint, prompt, 8)[-1]  # declared the end of an answer, for both
    expected = reference(checkpoint, prompt, 60, eos_token_id=eos)
    async with engine_on(checkpoint, eos=eos) as engine:
        answer = await ask(engine, prompt, Sampling(max_tokens=60))
        more = await ask(engine, prompt, Sampling(max_tokens=60, ignore_eos=True))
    assert (answer.ids, answer.finish_reason) == (expected, "stop")
    assert len(answer.ids) <= 8
    assert (len(more.ids), more.finish_reason) == (60, "length")
    assert more.ids[: len(answer.ids)] == answer.ids


async def test_repetition_penalty_is_transformers(checkpoint: Path) -> None:
    prompt = random_prompt(random.Random(2), images=0)
    async with engine_on(checkpoint) as engine:
        answer = await ask(engine, prompt, Sampling(max_tokens=30, repetition_penalty=1.7))
    assert answer.ids == reference(checkpoint, prompt, 30, repetition_penalty=1.7)


async def test_a_seed_gives_the_same_answer_alone_and_in_a_crowd(engine: NativeEngine) -> None:
    sampling = Sampling(temperature=1.2, top_p=0.9, top_k=50, seed=42, max_tokens=40, ignore_eos=True)
    alone = await ask(engine, PROMPT, sampling)
    rng = random.Random(1)
    others = [ask(engine, random_prompt(rng), Sampling(temperature=1.0, max_tokens=30)) for _ in range(6)]
    crowd = await asyncio.gather(ask(engine, PROMPT, sampling), *others)
    assert crowd[0].ids == alone.ids
    assert (await ask(engine, PROMPT, replace(sampling, seed=43))).ids != alone.ids


async def test_stop_strings_end_the_answer_before_them(engine: NativeEngine) -> None:
    whole = await ask(engine, PROMPT, Sampling(max_tokens=60, ignore_eos=True))
    stop = whole.text[10:14]
    at = whole.text.index(stop)
    stopped = await ask(engine, PROMPT, Sampling(max_tokens=60, ignore_eos=True, stop=("never there", stop)))
    assert stopped.text == whole.text[:at]
    assert stopped.finish_reason == "stop"
    assert len(stopped.ids) < 60


async def test_the_context_ends_an_answer_and_refuses_a_prompt(engine: NativeEngine) -> None:
    long = Prompt((tuple([5] * 500),))
    answer = await ask(engine, long, Sampling(max_tokens=100, ignore_eos=True))
    assert (len(answer.ids), answer.finish_reason) == (12, "length")
    with pytest.raises(PromptTooLong, match="512"):
        engine.submit(Prompt((tuple([5] * 512),)), Sampling())


async def test_what_does_not_fit_the_model_is_refused_by_name(engine: NativeEngine) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        engine.submit(Prompt(((),)), Sampling())
    with pytest.raises(InvalidRequest, match="a token that the model"):
        engine.submit(Prompt(((10**6,),)), Sampling())
    with pytest.raises(InvalidRequest, match="1 images, but 0 came"):
        engine.submit(Prompt(((1,), (2,))), Sampling())
    with pytest.raises(InvalidRequest, match=r"\[queries, 32\], not \[4, 31\]"):
        engine.submit(Prompt(((1,), (2,)), (np.zeros((4, 31), np.float16),)), Sampling())
    with pytest.raises(InvalidRequest, match="not finite"):
        engine.submit(Prompt(((1,), (2,)), (np.full((4, 32), np.nan, np.float16),)), Sampling())
    assert (await ask(engine, PROMPT, Sampling(max_tokens=2))).ids


async def test_cancelling_ends_a_request_at_the_next_step(engine: NativeEngine) -> None:
    stream = engine.submit(PROMPT, ENDLESS)
    await anext(stream)
    assert engine.stats().running == 1
    stream.cancel()
    with pytest.raises(Cancelled):
        async for _ in stream:
            pass
    await settled(engine)
    assert engine.stats().cancelled == 1


async def test_a_waiting_request_can_be_cancelled(engine: NativeEngine) -> None:
    streams = [engine.submit(PROMPT, ENDLESS) for _ in range(6)]
    streams[5].cancel()
    with pytest.raises(Cancelled):
        await anext(streams[5])
    for stream in streams:
        stream.cancel()
    await settled(engine)
    assert engine.stats().cancelled == 6


async def test_deadlines_end_running_and_waiting_requests(engine: NativeEngine) -> None:
    async def late() -> None:
        with pytest.raises(DeadlineExceeded):
            await ask(engine, PROMPT, ENDLESS, deadline=time.time() + 0.05)

    await asyncio.gather(*(late() for _ in range(7)))
    await settled(engine)
    assert engine.stats().expired == 7


async def test_a_full_queue_refuses(engine: NativeEngine) -> None:
    streams = [engine.submit(PROMPT, ENDLESS) for _ in range(12)]
    with pytest.raises(Overloaded):
        engine.submit(PROMPT, ENDLESS)
    for stream in streams:
        stream.cancel()
    await settled(engine)
    assert (await ask(engine, PROMPT, Sampling(max_tokens=3))).ids


async def test_closing_drains_and_then_refuses(tiny_checkpoint: Path) -> None:
    async with engine_on(tiny_checkpoint) as engine:
        short = asyncio.create_task(ask(engine, PROMPT, Sampling(max_tokens=30, ignore_eos=True)))
        await asyncio.sleep(0)
        await engine.close(drain_seconds=30)
        assert len((await short).ids) == 30
        with pytest.raises(Unavailable):
            engine.submit(PROMPT, Sampling())


async def test_closing_ends_what_does_not_finish(tiny_checkpoint: Path) -> None:
    async with engine_on(tiny_checkpoint, slots=1) as engine:
        streams = [engine.submit(PROMPT, ENDLESS) for _ in range(3)]
        await engine.close()
        for stream in streams:
            with pytest.raises(Unavailable):
                async for _ in stream:
                    pass


async def test_nothing_leaks_whatever_requests_do(tiny_checkpoint: Path) -> None:
    """Random requests with random ends; afterwards as many as before are served, and served right."""
    rng = random.Random(11)
    async with engine_on(tiny_checkpoint, slots=4, waiting=200, prefill_tokens=10) as engine:

        async def one() -> str:
            length, patience = rng.randint(1, 40), rng.choice((0, 1, 5, 1000))
            deadline = time.time() + rng.choice((0.0, 0.02, 60.0))
            stream = engine.submit(random_prompt(rng), Sampling(max_tokens=length, ignore_eos=True), deadline)
            try:
                async for delta in stream:
                    patience -= len(delta.ids)
                    if patience < 0:
                        stream.cancel()
            except ZiyaError as error:
                return type(error).__name__
            return "finished"

        ends = await asyncio.gather(*(one() for _ in range(150)))
        await settled(engine)
        stats = engine.stats()
        counts = {name: ends.count(name) for name in ("finished", "Cancelled", "DeadlineExceeded")}
        assert list(counts.values()) == [stats.finished, stats.cancelled, stats.expired]
        assert sum(counts.values()) == 150
        assert min(counts.values()) > 0
        answers = await asyncio.gather(*(ask(engine, PROMPT, Sampling(max_tokens=20)) for _ in range(4)))
    assert all(answer.ids == reference(tiny_checkpoint, PROMPT, 20) for answer in answers)


async def test_a_step_that_fails_ends_its_requests_alone(engine: NativeEngine) -> None:
    """Numbers of a type that torch does not know stand for a defect: they pass the checks and break the step."""
    poison = Prompt(((5,), (6,)), (np.zeros((4, 32), np.longdouble),))  # type: ignore[arg-type]
    with pytest.raises(Internal):
        await ask(engine, poison, Sampling())
    await settled(engine)
    answers = await asyncio.gather(*(ask(engine, PROMPT, Sampling(max_tokens=9, ignore_eos=True)) for _ in range(9)))
    assert {tuple(answer.ids) for answer in answers} == {tuple(answers[0].ids)}
    assert engine.stats().failed == 1


async def test_bfloat16_runs(tiny_checkpoint: Path) -> None:
    async with engine_on(tiny_checkpoint, dtype=torch.bfloat16) as engine:
        answers = await asyncio.gather(*(ask(engine, random_prompt(random.Random(n)), ENDLESS) for n in range(3)))
    assert all(answer.finish_reason == "length" for answer in answers)


async def test_first_tokens_are_timed_once(engine: NativeEngine) -> None:
    await asyncio.gather(*(ask(engine, PROMPT, Sampling(max_tokens=3)) for _ in range(3)))
    assert len(engine.first_token_seconds()) == 3
    assert engine.first_token_seconds() == []
