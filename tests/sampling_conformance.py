"""How every engine behind the seam must choose tokens; the other part of `tests.engine_conformance`."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Engine, Prompt
from tests.engine_expectations import chi_square_limit, distribution, greedy_by, logits_of
from tests.engine_questions import PROMPT, greedy, image, in_turns, text
from tests.engines import ask, random_prompt, reference
from ziya.errors import InvalidRequest


class SamplingConformance:
    """Subclasses give the fixtures `checkpoint` and `engine`."""

    @pytest.mark.parametrize("images", [0, 1])
    async def test_bias_and_penalties_mean_the_same_everywhere(
        self, engine: Engine, checkpoint: Path, images: int
    ) -> None:
        """transformers counts the text for a repetition penalty, but not where it is given embeddings of it."""
        prompt = random_prompt(random.Random(2), images)
        plain = reference(checkpoint, prompt, 30, eos_token_id=None)
        variants: tuple[dict[str, Any], ...] = (
            {"repetition_penalty": 1.7},
            {"presence_penalty": 1.9, "frequency_penalty": 0.7},
            {
                "logit_bias": ((plain[0], -50.0), (77, 4.0), (77, 3.0)),
                "repetition_penalty": 1.2,
                "frequency_penalty": 1,
            },
        )
        for options in variants:
            sampling = replace(greedy(30), **options)
            answer = await ask(engine, prompt, sampling)
            assert answer.ids == greedy_by(checkpoint, prompt, 30, sampling)
            assert answer.ids != plain

    async def test_logprobs_are_the_models_own(self, engine: Engine, checkpoint: Path) -> None:
        """Whatever a bias makes of the choice: here of a token that is unlikely."""
        prompt = Prompt((text(3, 12), text(4, 5)), (image(2),))
        chosen = int(logits_of(checkpoint, prompt).argsort()[50])
        sampling = replace(greedy(3), logit_bias=((chosen, 100.0),))
        for top in (0, 4):
            deltas = [delta async for delta in engine.submit(prompt, replace(sampling, logprobs=top))]
            found = [entry for delta in deltas for entry in delta.logprobs]
            assert [entry.token for entry in found] == [chosen] * 3
            for number, entry in enumerate(found):
                longer = replace(prompt, pieces=(prompt.pieces[0], prompt.pieces[1] + (chosen,) * number))
                expected = logits_of(checkpoint, longer).log_softmax(-1)
                assert entry.logprob == pytest.approx(float(expected[chosen]), abs=1e-3)
                assert [token for token, _ in entry.top] == expected.topk(top).indices.tolist()
                assert [value for _, value in entry.top] == pytest.approx(expected.topk(top).values.tolist(), abs=1e-3)
        assert not any([delta.logprobs async for delta in engine.submit(prompt, sampling)])

    async def test_a_schema_is_kept_to(self, engine: Engine) -> None:
        schema = {
            "type": "object",
            "properties": {"animal": {"enum": ["cat", "狗"]}, "sure": {"type": "boolean"}},
            "required": ["animal", "sure"],
            "additionalProperties": False,
        }
        for seed in range(3):
            sampling = Sampling(temperature=1.0, seed=seed, max_tokens=150, json_schema=json.dumps(schema))
            await engine.prepare(sampling)
            answer = await ask(engine, PROMPT, sampling)
            said = json.loads(answer.text)
            assert said["animal"] in {"cat", "狗"}
            assert said["sure"] in {True, False}
            assert answer.finish_reason == "stop"
        for wrong in ("{", '{"type": "nothing of the kind"}'):
            with pytest.raises(InvalidRequest):
                await engine.prepare(Sampling(json_schema=wrong))
        assert (await ask(engine, PROMPT, Sampling(max_tokens=2))).ids

    @pytest.mark.parametrize(
        "sampling",
        [Sampling(temperature=0.9, top_k=8), Sampling(temperature=1.1, top_p=0.6), Sampling(temperature=0.5)],
        ids=["top-k", "top-p", "temperature"],
    )
    async def test_tokens_are_drawn_as_often_as_they_should_be(
        self, engine: Engine, checkpoint: Path, sampling: Sampling
    ) -> None:
        """Pearson's chi-square of the first token over many seeds; the seeds are fixed, and so is the outcome."""
        prompt, draws = Prompt(((9, 8, 7, 6),), ()), 600
        expected = draws * distribution(logits_of(checkpoint, prompt), sampling)
        first = [replace(sampling, max_tokens=1, seed=seed) for seed in range(draws)]
        answers = await in_turns(engine, prompt, first)
        counts = np.bincount([answer.ids[0] for answer in answers], minlength=len(expected))
        assert counts[expected == 0].sum() == 0
        common = expected >= 5
        seen = np.append(counts[common], counts[~common].sum())
        wanted = np.append(expected[common], expected[~common].sum())
        degrees = int((wanted > 0).sum()) - 1
        statistic = float(((seen - wanted)[wanted > 0] ** 2 / wanted[wanted > 0]).sum())
        assert degrees >= 3
        assert statistic < chi_square_limit(degrees, 1e-4)

    async def test_a_seed_gives_the_same_answer_alone_and_in_a_crowd(self, engine: Engine) -> None:
        sampling = Sampling(temperature=1.2, top_p=0.9, top_k=50, seed=42, max_tokens=40, ignore_eos=True)
        alone = await ask(engine, PROMPT, sampling)
        rng = random.Random(1)
        others = [ask(engine, random_prompt(rng), Sampling(temperature=1.0, max_tokens=30)) for _ in range(6)]
        crowd = await asyncio.gather(ask(engine, PROMPT, sampling), *others)
        assert crowd[0].ids == alone.ids
        assert (await ask(engine, PROMPT, replace(sampling, seed=43))).ids != alone.ids
