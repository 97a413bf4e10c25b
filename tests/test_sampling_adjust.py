"""Penalties, bias and logarithms of probabilities: against transformers, torch, and OpenAI's formula done by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from services.llama.engine.choice import Choice
from services.llama.engine.sampler import choose
from services.llama.engine.sampling import Sampling

DRAWS = 4000
VOCABULARY = 40
# The 0.999 quantile of chi-square by degrees of freedom, as tables have it.
CRITICAL = {1: 10.83, 4: 18.47, 6: 22.46, 9: 27.88, 14: 36.12, 19: 43.82, 24: 51.18, 29: 58.30, 34: 65.25, 39: 72.05}


def logits(vocabulary: int = VOCABULARY, seed: int = 0) -> Tensor:
    return torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


def told(choice: Choice, prompt: list[int], answer: list[int]) -> Choice:
    choice.saw(prompt)
    for token in answer:
        choice.accept(token)
    return choice


def by_hand(scores: Tensor, sampling: Sampling, prompt: list[int], answer: list[int]) -> Tensor:
    """Adjusted logits, one entry after the other: bias, repetition as transformers has it, then OpenAI's formula."""
    wanted = scores.clone()
    for token, bias in sampling.logit_bias:
        wanted[token] += bias
    processor = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)
    if prompt or answer:
        wanted = processor(torch.tensor([prompt + answer]), wanted[None])[0]
    for token, count in Counter(answer).items():
        wanted[token] -= count * sampling.frequency_penalty + sampling.presence_penalty
    return wanted


def test_repetition_penalty_is_transformers_over_prompt_and_answer() -> None:
    scores, prompt, answer = logits(), [3, 5, 5, 9], [7, 9, 11]
    expected = RepetitionPenaltyLogitsProcessor(1.8)(torch.tensor([prompt + answer]), scores[None].clone())
    ours = scores[None].clone()
    choose(ours, [told(Choice(Sampling(repetition_penalty=1.8)), prompt, answer)])
    assert torch.equal(ours, expected)


def test_presence_and_frequency_count_the_answer_alone() -> None:
    scores = torch.zeros(1, 6)
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    choose(scores, [told(Choice(sampling), [0, 1, 1], [1, 2, 2, 2])])
    assert scores[0].tolist() == [0, -0.75, -1.25, 0, 0, 0]


WAYS = [
    {
        "repetition_penalty": 1.4,
        "presence_penalty": -0.7,
        "frequency_penalty": 0.9,
        "logit_bias": ((2, 3.0), (9, -5.0)),
    },
    {"logit_bias": ((0, 100.0),)},
    {},
    {"presence_penalty": 1.5},
    {"repetition_penalty": 0.6, "temperature": 1.0, "top_k": 3},
]


@pytest.mark.parametrize("generated", [0, 1, 200], ids=str)
def test_rows_of_a_batch_are_adjusted_each_by_its_own(generated: int) -> None:
    """Also beyond the tally's first room, and each row as it would be alone."""
    rows = torch.stack([logits(300, seed) for seed in range(len(WAYS))])
    prompt = [2, 9, 40]
    answer = [int(token) for token in torch.arange(generated) * 7 % 300]
    samplings = [Sampling(**way) for way in WAYS]
    wanted = torch.stack([by_hand(row, each, prompt, answer) for row, each in zip(rows, samplings, strict=True)])
    wanted[2] = rows[2]
    ours = rows.clone()
    chosen = choose(ours, [told(Choice(each), prompt, answer) for each in samplings])
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)
    assert [each.token for each in chosen[:4]] == wanted[:4].argmax(-1).tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.8, "presence_penalty": 1.2, "frequency_penalty": 0.6},
        {"temperature": 1.2, "repetition_penalty": 1.5, "top_k": 15},
        {"temperature": 1.0, "logit_bias": ((0, 2.0), (1, -100.0), (7, 1.0))},
        {
            "temperature": 1.1,
            "top_p": 0.9,
            "top_k": 20,
            "repetition_penalty": 1.2,
            "presence_penalty": 0.4,
            "frequency_penalty": 0.3,
            "logit_bias": ((5, 2.0),),
        },
    ],
    ids=["openai", "repetition", "bias", "all"],
)
def test_draws_follow_the_exact_probabilities(options: dict[str, Any]) -> None:
    """Chi-square at 0.1 %, with fixed seeds: it passes always or never."""
    prompt, answer, scores = [1, 4, 30], [7, 7, 12], logits(seed=3)
    wanted = by_hand(scores, Sampling(**options), prompt, answer)[None]
    none = torch.zeros(1, 1, dtype=torch.long)
    wanted = TemperatureLogitsWarper(options["temperature"])(none, wanted)
    if "top_k" in options:
        wanted = TopKLogitsWarper(options["top_k"])(none, wanted)
    if "top_p" in options:
        wanted = TopPLogitsWarper(options["top_p"])(none, wanted)
    expected = (wanted[0].softmax(-1) * DRAWS).tolist()
    choice = told(Choice(Sampling(**options, seed=11)), prompt, answer)
    counts = Counter(choose(scores[None].clone(), [choice])[0].token for _ in range(DRAWS))
    assert all(expected[token] > 0 for token in counts)
    likely = [token for token in range(VOCABULARY) if expected[token] >= 5]
    rare = sum(expected) - sum(expected[token] for token in likely)
    chi = sum((counts[token] - expected[token]) ** 2 / expected[token] for token in likely)
    if rare >= 5:
        chi += (DRAWS - sum(counts[token] for token in likely) - rare) ** 2 / rare
    freedom = len(likely) - 1 + (rare >= 5)
    assert chi < CRITICAL[min(key for key in CRITICAL if key >= freedom)]


@pytest.mark.parametrize("top_p", [0.97, 0.6, 0.25, 0.02])
def test_a_flat_row_is_drawn_from_as_if_it_were_sorted(top_p: float) -> None:
    """More tokens than the first candidates lie within, and the draws fall into ten equal parts of them."""
    scores = logits(4000, 2) / 8
    none = torch.zeros(1, 1, dtype=torch.long)
    expected = TopPLogitsWarper(top_p)(none, scores[None].clone())[0].softmax(-1)
    assert int((expected > 0).sum()) > 64 or top_p < 0.1
    choice = Choice(Sampling(temperature=1.0, top_p=top_p, seed=2))
    drawn = [choose(scores[None].clone(), [choice])[0].token for _ in range(1500)]
    assert all(expected[token] > 0 for token in drawn)
    part = (expected.cumsum(-1) * 10).clamp(0, 9.999).long()
    weights = torch.zeros(10).index_add_(0, part, expected)
    counts = torch.zeros(10).index_add_(0, part[drawn], torch.ones(len(drawn)))
    chi = float(((counts - weights * 1500) ** 2 / (weights * 1500)).sum())
    assert chi < CRITICAL[9]


def test_logprobs_are_the_models_own() -> None:
    """Whatever is done to the logits afterwards."""
    rows = torch.stack([logits(seed=seed) for seed in range(4)])
    ways = [
        Sampling(logprobs=3),
        Sampling(logprobs=0, logit_bias=((4, 50.0),)),
        Sampling(),
        Sampling(temperature=2.0, seed=1, logprobs=20, presence_penalty=2.0),
    ]
    chosen = choose(rows.clone(), [told(Choice(way), [], [6]) for way in ways])
    expected = rows.double().log_softmax(-1)
    assert chosen[1].token == 4
    assert chosen[2].logprob is None
    for row, count in ((0, 3), (1, 0), (3, 20)):
        told_of = chosen[row].logprob
        assert told_of is not None
        assert told_of.token == chosen[row].token
        assert told_of.logprob == pytest.approx(float(expected[row, chosen[row].token]), abs=1e-5)
        best = expected[row].topk(count)
        assert [token for token, _ in told_of.top] == best.indices.tolist()
        assert [value for _, value in told_of.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_a_seed_draws_the_same_alone_and_in_a_crowd() -> None:
    way = Sampling(temperature=1.3, seed=5, presence_penalty=0.8, logit_bias=((3, 1.0),), top_p=0.95)
    others = [Sampling(temperature=0.7, top_k=4, repetition_penalty=1.3), Sampling(logprobs=2), Sampling()]
    alone, crowd = Choice(way), [Choice(each) for each in (*others, way)]
    for step in range(30):
        rows = torch.stack([logits(seed=10 * step + number) for number in range(4)])
        single = choose(rows[3:].clone(), [alone])[0].token
        together = choose(rows.clone(), crowd)
        assert together[3].token == single
        alone.accept(single)
        for choice, each in zip(crowd, together, strict=True):
            choice.accept(each.token)


def test_what_is_plain_leaves_logits_alone() -> None:
    rows = torch.stack([logits(seed=seed) for seed in range(8)])
    before = rows.clone()
    choices = [told(Choice(Sampling()), [1], [2]) for _ in range(8)]
    assert all(choice.plain and choice.memoryless for choice in choices)
    assert [each.token for each in choose(rows, choices)] == rows.argmax(-1).tolist()
    assert torch.equal(rows, before)
    assert not Choice(Sampling(logit_bias=((1, 1.0),))).plain
    assert Choice(Sampling(logit_bias=((1, 1.0),))).memoryless
    assert not Choice(Sampling(presence_penalty=1.0)).memoryless
