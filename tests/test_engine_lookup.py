"""Guesses by prompt lookup: found as a plain search finds them, and an answer is the same with them and without."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from services.llama.engine.blocks import BLOCK
from services.llama.engine.lookup import GRAMS, Lookup
from services.llama.engine.prefix import VISUAL
from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Prompt
from tests.engines import BOTH, QUERIES, WIDTH, ask, engine_on, random_prompt, reference

FORGETFUL = 0.01  # a model that hardly attends goes round in circles, and not in all of them at once
TOKENS = st.lists(st.sampled_from((VISUAL, 1, 2, 3)), max_size=40)


def searched(tokens: list[int], count: int) -> list[int]:
    """The same by looking at every place, from the last one back."""
    known = len(tokens)
    for size in GRAMS:
        gram = tokens[known - size :]
        if known < size or VISUAL in gram:
            continue
        for after in range(known - 1, size - 1, -1):
            if tokens[after - size : after] == gram:
                longer = list(tokens)
                for position in range(after, after + count):
                    if longer[position] == VISUAL:
                        break
                    longer.append(longer[position])
                return longer[known:]
    return []


@given(pieces=st.lists(TOKENS, min_size=1, max_size=6), count=st.integers(0, 6))
def test_guesses_are_what_a_search_finds(pieces: list[list[int]], count: int) -> None:
    """Also when it was asked before, with less."""
    tokens: list[int] = []
    lookup = Lookup(tokens)
    for piece in pieces:
        tokens.extend(piece)
        assert lookup.guess(count) == searched(tokens, count)


@pytest.fixture(scope="module")
def forgetful(tiny_checkpoint: Path) -> LlamaForCausalLM:
    model = LlamaForCausalLM.from_pretrained(tiny_checkpoint / "llama", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name:
                weight.mul_(FORGETFUL)
    return model


@BOTH
async def test_answers_are_the_same_with_guesses_and_some_are_right(
    tiny_checkpoint: Path, forgetful: LlamaForCausalLM, kernels: str
) -> None:
    """Alone, and in a crowd that is short of memory and has neighbours nobody may guess for."""
    rng = random.Random(2)
    prompts = [random_prompt(rng, longest=12) for _ in range(12)]
    async with engine_on(tiny_checkpoint, kernels=kernels, attention=FORGETFUL, lookup_tokens=5) as engine:
        alone = [(await ask(engine, prompt, Sampling(max_tokens=90, ignore_eos=True))).ids for prompt in prompts[:4]]
        assert engine.stats().accepted > 0
    async with engine_on(
        tiny_checkpoint, kernels=kernels, attention=FORGETFUL, lookup_tokens=5, kv_blocks=30, prefill_tokens=16
    ) as engine:

        async def join(number: int) -> list[int]:
            await asyncio.sleep(rng.random() * 0.05)
            luck = {"temperature": 1.0, "seed": 1} if number % 4 == 3 else {}
            return (await ask(engine, prompts[number], Sampling(max_tokens=90, ignore_eos=True, **luck))).ids

        crowd = await asyncio.gather(*map(join, range(len(prompts))))
        stats = engine.stats()
    assert 0 < stats.accepted < stats.drafted
    assert stats.tokens == 12 * 90
    for number, prompt in enumerate(prompts):
        expected = reference(tiny_checkpoint, prompt, 90, other=forgetful, eos_token_id=None)
        assert number % 4 == 3 or crowd[number] == expected, number
        assert number >= 4 or alone[number] == expected


@BOTH
async def test_right_guesses_save_steps(tiny_checkpoint: Path, forgetful: LlamaForCausalLM, kernels: str) -> None:
    """An answer that goes round in circles: fewer steps than tokens, exactly by the guesses that were right."""
    prompt = Prompt(((10, 11, 12, 13),))
    async with engine_on(tiny_checkpoint, kernels=kernels, attention=FORGETFUL, lookup_tokens=4) as engine:
        answer = await ask(engine, prompt, Sampling(max_tokens=200, ignore_eos=True))
        stats = engine.stats()
        follow_up = await ask(engine, Prompt((prompt.pieces[0] + tuple(answer.ids),)), Sampling(max_tokens=1))
    assert stats.accepted > 50
    assert stats.steps == 200 - stats.accepted
    assert follow_up.usage.cached_tokens == (4 + 199) // BLOCK * BLOCK  # what guesses led to is reused as well
    assert answer.ids == reference(tiny_checkpoint, prompt, 200, other=forgetful, eos_token_id=None)


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"repetition_penalty": 1.1}])
async def test_nobody_guesses_where_guesses_cannot_be_verified(
    tiny_checkpoint: Path, options: dict[str, float]
) -> None:
    prompt = Prompt(((5, 6, 7) * 9, (5, 6, 7) * 3), (np.ones((QUERIES, WIDTH), np.float16),))
    async with engine_on(tiny_checkpoint, lookup_tokens=4) as engine:
        await ask(engine, prompt, Sampling(max_tokens=20, ignore_eos=True))
        drafted = engine.stats().drafted
        await ask(engine, prompt, Sampling(max_tokens=20, ignore_eos=True, **options))
        assert engine.stats().drafted == drafted > 0


async def test_guesses_do_not_lead_beyond_the_end_of_an_answer(tiny_checkpoint: Path) -> None:
    """In a context and a cache that both end with the answer."""
    prompt = Prompt(((5, 6, 7) * 16,))
    async with engine_on(tiny_checkpoint, lookup_tokens=8, context=64, kv_blocks=4) as engine:
        answer = await ask(engine, prompt, Sampling(max_tokens=100, ignore_eos=True))
    assert answer.ids == reference(tiny_checkpoint, prompt, 16, eos_token_id=None)
