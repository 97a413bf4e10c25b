"""What every engine behind the seam must do, whatever computes for it. Not a test itself: see `Conformance`.

The engine under test has 4 places to run and 8 to wait, prompts in chunks of 24 tokens, prefix reuse, float32, and
so small a KV cache that four long requests do not fit: some of them lose their place and are computed again.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Engine, Prompt
from tests.engine_expectations import decoded, low_rank_adapter
from tests.engine_questions import (
    CONTEXT,
    ENDLESS,
    PROMPT,
    SHARED,
    SLOTS,
    WAITING,
    Start,
    drained,
    greedy,
    image,
    text,
)
from tests.engines import QUERIES, ask, random_prompt, reference, settled
from tests.sampling_conformance import SamplingConformance
from ziya.errors import Cancelled, DeadlineExceeded, InvalidRequest, Overloaded, PromptTooLong, Unavailable


class Conformance(SamplingConformance):
    """Subclasses give the fixtures `checkpoint` (of `conforming_checkpoint`), `engine`, and `start` for another one."""

    @pytest.mark.parametrize("images", [0, 1, 2])
    async def test_a_lone_greedy_answer_is_transformers(self, engine: Engine, checkpoint: Path, images: int) -> None:
        prompt = random_prompt(random.Random(images), images)
        answer = await ask(engine, prompt, Sampling(max_tokens=40))
        assert answer.ids == reference(checkpoint, prompt, 40)

    async def test_greedy_answers_in_a_crowd_are_transformers(self, engine: Engine, checkpoint: Path) -> None:
        """More than may run at once, of all lengths, with sampled neighbours."""
        rng = random.Random(7)
        prompts = [random_prompt(rng) for _ in range(SLOTS + WAITING)]
        lengths = [rng.randint(1, 50) for _ in prompts]
        sampled = Sampling(temperature=1.0, seed=1, max_tokens=20)
        answers = await asyncio.gather(
            *(
                ask(engine, prompt, sampled if number % 4 == 3 else Sampling(max_tokens=length))
                for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
            )
        )
        for number, answer in enumerate(answers):
            if number % 4 != 3:
                assert answer.ids == reference(checkpoint, prompts[number], lengths[number]), number

    async def test_a_long_prompt_in_chunks_is_transformers(self, engine: Engine, checkpoint: Path) -> None:
        prompt = Prompt((text(1, 90), text(2, 130), text(3, 5)), (image(1), image(2)))
        answer = await ask(engine, prompt, greedy(30))
        assert answer.ids == reference(checkpoint, prompt, 30, eos_token_id=None)

    async def test_what_is_reused_changes_no_answer(self, engine: Engine, checkpoint: Path) -> None:
        """A second question about an image reuses what comes before; another image or tenant nothing of it."""
        first = Prompt((text(4, SHARED - QUERIES), text(5, 9)), (image(3),), salt=b"reuse")
        second = replace(first, pieces=(first.pieces[0], text(6, 9)), visuals=(image(3).copy(),))
        other_image = replace(second, visuals=(image(4),))
        other_tenant = replace(second, salt=b"another")
        prompts = [first, second, other_image, other_tenant]
        answers = [await ask(engine, prompt, greedy(20)) for prompt in prompts]
        reused = [answer.usage.cached_tokens for answer in answers]
        assert reused[0] == reused[3] == 0
        assert reused[1] == SHARED
        assert reused[2] < first.positions - QUERIES - 9
        for answer, prompt in zip(answers, prompts, strict=True):
            assert answer.ids == reference(checkpoint, prompt, 20, eos_token_id=None)

    async def test_answers_that_lost_their_place_are_transformers(self, engine: Engine, checkpoint: Path) -> None:
        prompts = [Prompt((text(number, 60), text(number, 40)), (image(number),)) for number in range(20, 24)]
        before = engine.stats().preempted
        answers = await asyncio.gather(*(ask(engine, prompt, greedy(250)) for prompt in prompts))
        assert engine.stats().preempted > before
        for answer, prompt in zip(answers, prompts, strict=True):
            assert answer.ids == reference(checkpoint, prompt, 250, eos_token_id=None)

    async def test_adapters_come_and_go_while_others_are_served(
        self, engine: Engine, checkpoint: Path, tmp_path: Path
    ) -> None:
        merged = {name: low_rank_adapter(checkpoint, tmp_path / name, ord(name)) for name in "ab"}
        for name in merged:
            await engine.load_adapter(name, tmp_path / name)
        assert engine.adapters() == ("a", "b")
        with pytest.raises(InvalidRequest, match="loaded already"):
            await engine.load_adapter("a", tmp_path / "a")
        prompts = [Prompt((text(1, 140), text(2, 9)), (image(1),), adapter=name) for name in ("", "a", "b", "")]
        answers = await asyncio.gather(*(ask(engine, prompt, greedy(20)) for prompt in prompts))
        for answer, prompt in zip(answers, prompts, strict=True):
            other = merged.get(prompt.adapter)
            assert answer.ids == reference(checkpoint, prompt, 20, other=other, eos_token_id=None), prompt.adapter
        for name in merged:
            await engine.unload_adapter(name)
        with pytest.raises(InvalidRequest, match="no adapter"):
            engine.submit(prompts[1], greedy(1))
        # another one of the same name shares nothing with it
        await engine.load_adapter("a", tmp_path / "b")
        answer = await ask(engine, prompts[1], greedy(20))
        await engine.unload_adapter("a")
        assert answer.usage.cached_tokens == 0
        assert answer.ids == reference(checkpoint, prompts[1], 20, other=merged["b"], eos_token_id=None)

    async def test_text_is_whole_characters_and_says_what_the_ids_say(self, engine: Engine, checkpoint: Path) -> None:
        """The tokenizer falls back to bytes, so nearly all of a random answer is broken UTF-8."""
        sampling = Sampling(temperature=1.5, seed=5, max_tokens=200, ignore_eos=True)
        ids, pieces = list[int](), list[str]()
        async for delta in engine.submit(PROMPT, sampling):
            ids += delta.ids
            pieces.append(delta.text)
        assert "".join(pieces) == decoded(checkpoint, ids)
        assert len(ids) == 200

    async def test_an_end_token_ends_an_answer_unless_ignored(self, engine: Engine) -> None:
        sampling = Sampling(temperature=2.0, max_tokens=200)
        answers = [await ask(engine, PROMPT, replace(sampling, seed=seed)) for seed in range(6)]
        seed, ended = next((n, answer) for n, answer in enumerate(answers) if answer.finish_reason == "stop")
        assert ended.ids[-1] == 2
        assert 2 not in ended.ids[:-1]
        assert "</s>" not in ended.text
        more = await ask(engine, PROMPT, replace(sampling, seed=seed, ignore_eos=True))
        assert (len(more.ids), more.finish_reason) == (200, "length")
        assert more.ids[: len(ended.ids)] == ended.ids

    async def test_stop_strings_end_the_answer_before_them(self, engine: Engine) -> None:
        whole = await ask(engine, PROMPT, greedy(60))
        stop = whole.text[10:14]
        at = whole.text.index(stop)
        pieces, last = list[str](), None
        async for last in engine.submit(PROMPT, replace(greedy(60), stop=("never there", stop))):
            pieces.append(last.text)
        assert "".join(pieces) == whole.text[:at]
        assert last.finish_reason == "stop"
        assert last.usage.completion_tokens < 60
        await settled(engine)

    async def test_the_context_ends_an_answer_and_refuses_a_prompt(self, engine: Engine) -> None:
        answer = await ask(engine, Prompt((text(9, 500),)), greedy(100))
        assert (len(answer.ids), answer.finish_reason) == (12, "length")
        with pytest.raises(PromptTooLong, match=str(CONTEXT)):
            engine.submit(Prompt((text(9, CONTEXT),)), Sampling())
        with pytest.raises(PromptTooLong):
            engine.check_length(CONTEXT - 10, 10)
        engine.check_length(CONTEXT - 10, 9)

    async def test_what_does_not_fit_the_model_is_refused_by_name(self, engine: Engine) -> None:
        wrong = {
            "empty": Prompt(((),)),
            "a token that the model": Prompt(((10**6,),)),
            "1 images, but 0 came": Prompt(((1,), (2,))),
            r"\[queries, 32\], not \[4, 31\]": Prompt(((1,), (2,)), (np.zeros((4, 31), np.float16),)),
            "not finite": Prompt(((1,), (2,)), (np.full((4, 32), np.nan, np.float16),)),
            "no adapter": Prompt(((1,),), adapter="unheard-of"),
        }
        for sentence, prompt in wrong.items():
            with pytest.raises(InvalidRequest, match=sentence):
                engine.submit(prompt, Sampling())
        assert (await ask(engine, PROMPT, Sampling(max_tokens=2))).ids

    async def test_usage_adds_up(self, engine: Engine) -> None:
        before, began = engine.stats(), time.perf_counter()
        engine.first_token_seconds()
        prompt = Prompt((text(11, 30), text(12, 3)), (image(9),))
        answer = await ask(engine, prompt, greedy(25))
        took, after, usage = time.perf_counter() - began, engine.stats(), answer.usage
        assert (usage.prompt_tokens, usage.image_tokens, usage.completion_tokens) == (37, QUERIES, 25)
        parts = (usage.queue_seconds, usage.prefill_seconds, usage.decode_seconds)
        assert min(parts) >= 0
        assert sum(parts) <= took
        assert after.prompt_tokens - before.prompt_tokens == 37
        assert after.tokens - before.tokens == 25
        assert after.finished - before.finished == 1
        assert after.steps - before.steps >= 25
        (first,) = engine.first_token_seconds()
        assert 0 < first <= took
        assert engine.first_token_seconds() == []

    async def test_cancelling_makes_room_at_once(self, engine: Engine) -> None:
        """All places are taken by requests that would go on; one that waits is served when one of them is cancelled."""
        streams = [engine.submit(PROMPT, ENDLESS) for _ in range(SLOTS)]
        for stream in streams:
            await anext(stream)
        waiting = asyncio.create_task(ask(engine, PROMPT, greedy(3)))
        await asyncio.sleep(0)
        before = engine.stats()
        assert before.running + before.waiting == SLOTS + 1
        streams[0].cancel()
        with pytest.raises(Cancelled):
            await drained(streams[0])
        assert len((await waiting).ids) == 3
        assert engine.stats().cancelled == before.cancelled + 1
        for stream in streams[1:]:
            stream.cancel()
        await settled(engine)
        assert engine.stats().blocks_used == 0

    async def test_a_request_that_has_not_begun_can_be_cancelled(self, engine: Engine) -> None:
        streams = [engine.submit(PROMPT, ENDLESS) for _ in range(SLOTS + 2)]
        streams[-1].cancel()
        with pytest.raises(Cancelled):
            await drained(streams[-1])
        for stream in streams:
            stream.cancel()
            stream.cancel()
        await settled(engine)

    async def test_deadlines_end_running_and_waiting_requests(self, engine: Engine) -> None:
        expired = engine.stats().expired

        async def late() -> None:
            with pytest.raises(DeadlineExceeded):
                await ask(engine, PROMPT, ENDLESS, deadline=time.time() + 0.02)

        await asyncio.gather(*(late() for _ in range(SLOTS + 3)))
        await settled(engine)
        assert engine.stats().expired == expired + SLOTS + 3

    async def test_a_full_queue_refuses(self, engine: Engine) -> None:
        rejected = engine.stats().rejected
        streams = [engine.submit(PROMPT, ENDLESS) for _ in range(SLOTS + WAITING)]
        with pytest.raises(Overloaded):
            engine.submit(PROMPT, ENDLESS)
        for stream in streams:
            stream.cancel()
        await settled(engine)
        assert engine.stats().rejected == rejected + 1
        assert len((await ask(engine, PROMPT, greedy(3))).ids) == 3

    async def test_closing_drains_and_then_refuses(self, start: Start) -> None:
        async with start() as engine:
            short = asyncio.create_task(ask(engine, PROMPT, greedy(30)))
            await asyncio.sleep(0)
            closing = asyncio.create_task(engine.close(drain_seconds=30))
            assert len((await short).ids) == 30
            await closing
            with pytest.raises(Unavailable):
                engine.submit(PROMPT, Sampling())

    async def test_closing_ends_what_does_not_finish(self, start: Start) -> None:
        async with start() as engine:
            streams = [engine.submit(PROMPT, ENDLESS) for _ in range(SLOTS + 2)]
            await anext(streams[0])
            await engine.close()
            for stream in streams:
                with pytest.raises(Unavailable):
                    await drained(stream)
