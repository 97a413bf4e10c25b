"""Choosing tokens: the distributions of transformers' own processors, and refusals that name the field."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from services.llama.engine.choice import Choice
from services.llama.engine.sampler import candidates, choose
from services.llama.engine.sampling import Sampling
from ziya.checkpoint import GenerationDefaults
from ziya.errors import InvalidRequest

DRAWS = 4000


def logits(vocabulary: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


def transformers_probabilities(scores: Tensor, **sampling: Any) -> Tensor:
    warpers = LogitsProcessorList()
    if "temperature" in sampling:
        warpers.append(TemperatureLogitsWarper(sampling["temperature"]))
    if "top_k" in sampling:
        warpers.append(TopKLogitsWarper(sampling["top_k"]))
    if "top_p" in sampling:
        warpers.append(TopPLogitsWarper(sampling["top_p"]))
    return warpers(torch.zeros(1, 1, dtype=torch.long), scores[None].clone())[0].softmax(-1)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.5, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 0.9, "top_k": 12, "top_p": 0.7},
    ],
    ids=str,
)
def test_draws_follow_transformers_distribution(sampling: dict[str, Any]) -> None:
    scores = logits()
    expected = transformers_probabilities(scores, **sampling)
    choice = Choice(Sampling(**sampling, seed=5))
    counts = Counter(choose(scores[None].clone(), [choice])[0].token for _ in range(DRAWS))
    assert all(expected[token] > 0 for token in counts)
    likely = [token for token in range(len(scores)) if expected[token] * DRAWS >= 5]
    chi = sum((counts[t] - DRAWS * float(expected[t])) ** 2 / (DRAWS * float(expected[t])) for t in likely)
    freedom = max(1, len(likely) - 1)
    assert chi < freedom + 4 * math.sqrt(2 * freedom) + 4  # beyond four deviations: it is another distribution


# Above 0.999 the tail that is left out is smaller than what float32 sums lose, so any part of it is right.
@given(top_p=st.floats(0.01, 0.999), top_k=st.integers(0, 400), seed=st.integers(0, 1000), flat=st.floats(0.01, 3))
@settings(max_examples=60, deadline=None)
def test_the_candidates_kept_are_transformers(top_p: float, top_k: int, seed: int, flat: float) -> None:
    """A vocabulary larger than the first candidates, from peaked to flat."""
    scores = logits(300, seed) * flat
    options: dict[str, Any] = {"top_p": top_p} | ({"top_k": top_k} if top_k else {})
    expected = transformers_probabilities(scores, **options)
    probabilities, ids, enough = candidates(scores[None], 64, [top_k], torch.tensor([[top_p]]))
    if not enough or top_k > 64:
        probabilities, ids, _ = candidates(scores[None], 300, [top_k], torch.tensor([[top_p]]))
    weights = probabilities[0] * (probabilities[0].cumsum(-1) - probabilities[0] < top_p)
    kept = set(ids[0][weights > 0].tolist())
    wanted = {int(token) for token in expected.nonzero()[:, 0]}
    # sums in another order may differ in the last bit, so the one token on the border is either way right
    assert len(kept ^ wanted) <= 1


def test_rows_are_sampled_each_by_its_own_settings() -> None:
    rows = torch.stack([logits(seed=n) for n in range(4)])
    hot = Sampling(temperature=2.0, seed=1)
    ways = [Sampling(), hot, Sampling(temperature=1.0, top_k=1), Sampling(temperature=1.0, top_p=1e-6)]
    best = rows.argmax(-1).tolist()
    for _ in range(20):
        tokens = [chosen.token for chosen in choose(rows.clone(), [Choice(way) for way in ways])]
        assert [tokens[0], tokens[2], tokens[3]] == [best[0], best[2], best[3]]
    alone, crowd = Choice(hot), [Choice(way) for way in ways]
    for _ in range(20):
        assert choose(rows[1:2].clone(), [alone])[0] == choose(rows.clone(), crowd)[1]


def test_fields_are_taken_over_the_checkpoints_defaults() -> None:
    defaults = GenerationDefaults(max_tokens=9, temperature=0.5, top_p=0.2)
    sampling = Sampling.parse({"temperature": 0, "stop": "x", "top_k": None}, defaults)
    assert sampling == Sampling(temperature=0, top_p=0.2, max_tokens=9, stop=("x",))
    raw = {"logit_bias": {"7": -100, "9": 1.5}, "logprobs": 3, "json_schema": {"type": "object"}}
    sampling = Sampling.parse(raw, GenerationDefaults())
    assert sampling.logit_bias == ((7, -100), (9, 1.5))
    assert (sampling.logprobs, sampling.json_schema) == (3, '{"type": "object"}')


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"temprature": 1}, "unknown sampling field temprature"),
        ({"temperature": -0.1}, "temperature must be a number from 0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p must be a number above 0 up to 1"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"max_tokens": 0}, "max_tokens must be a whole number from 1"),
        ({"seed": "x"}, "seed"),
        ({"stop": [""]}, "each stop must be a string of 1"),
        ({"stop": [1]}, "each stop"),
        ({"stop": {"a": 1}}, "stop must be a string or a list"),
        ({"stop": ["x"] * 17}, "at most 16"),
        ({"ignore_eos": 1}, "ignore_eos must be true or false"),
        ({"presence_penalty": 2.1}, "presence_penalty must be a number from -2 up to 2"),
        ({"frequency_penalty": "x"}, "frequency_penalty"),
        ({"logit_bias": {"1": 101}}, "each number of logit_bias"),
        ({"logit_bias": {"one": 1}}, "each name in logit_bias must be a token id, not 'one'"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {str(n): 1 for n in range(1025)}}, "at most 1024"),
        ({"logprobs": 21}, "logprobs must be a whole number from 0 to 20"),
        ({"logprobs": True}, "logprobs"),
        ({"json_schema": 5}, "json_schema must be a JSON schema"),
        ({"json_schema": "x" * 40_000}, "at most 32768"),
        ({"json_schema": {}, "ignore_eos": True}, "exclude each other"),
    ],
)
def test_a_wrong_field_is_named(raw: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        Sampling.parse(raw, GenerationDefaults())
