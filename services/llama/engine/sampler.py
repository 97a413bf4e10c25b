"""Chooses the next token of every request at once, each by its own `Sampling`.

Order and meaning are transformers': repetition penalty, temperature, top-k, top-p. A draw is one number from
the request's own generator, turned into a token through the cumulated probabilities, so that neighbours in
the batch never change an answer. Only as many candidates are sorted as the largest top-p needs: a full sort of
a vocabulary for each token would cost more than the model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from services.llama.engine.sampling import Sampling

FIRST_CANDIDATES = 64
GROWTH = 16


@dataclass
class Choice:
    """One request's sampling state: its generator, and the text tokens seen so far if they are penalised."""

    sampling: Sampling
    generator: Random = field(init=False)
    seen: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.generator = Random(self.sampling.seed)

    @property
    def penalised(self) -> bool:
        return self.sampling.repetition_penalty != 1.0

    def saw(self, ids: Sequence[int]) -> None:
        if self.penalised:
            self.seen.update(ids)


def choose(logits_SV: Tensor, choices: Sequence[Choice]) -> list[int]:
    """The next token of each row of float32 `logits_SV`, which may be overwritten."""
    for row, choice in enumerate(choices):
        if choice.penalised and choice.seen:
            _penalise(logits_SV[row], choice)
    sampled = [row for row, choice in enumerate(choices) if not choice.sampling.greedy]
    if not sampled:
        return list(logits_SV.argmax(-1).tolist())
    if len(sampled) == len(choices):
        return _draw(logits_SV, choices)
    tokens = list(logits_SV.argmax(-1).tolist())
    drawn = _draw(logits_SV[sampled], [choices[row] for row in sampled])
    for row, token in zip(sampled, drawn, strict=True):
        tokens[row] = token
    return tokens


def _penalise(logits_V: Tensor, choice: Choice) -> None:
    ids = torch.tensor(list(choice.seen), device=logits_V.device)
    scores, penalty = logits_V[ids], choice.sampling.repetition_penalty
    logits_V[ids] = torch.where(scores < 0, scores * penalty, scores / penalty)


def _draw(logits_SV: Tensor, choices: Sequence[Choice]) -> list[int]:
    """Which way a row takes depends on its own settings alone: its neighbours must not change its answer."""
    vocabulary = logits_SV.shape[1]
    scaled_SV = logits_SV / _column([choice.sampling.temperature for choice in choices], logits_SV)
    luck = [choice.generator.random() for choice in choices]
    tokens = [0] * len(choices)
    rows_of: dict[int, list[int]] = {}  # how many candidates a row needs, 0 for all in their own order
    for row, choice in enumerate(choices):
        rows_of.setdefault(_candidates_needed(choice.sampling, vocabulary), []).append(row)
    while rows_of:
        count = min(rows_of)
        rows = rows_of.pop(count)
        scores_SV = scaled_SV if len(rows) == len(choices) else scaled_SV[rows]
        luck_S1 = _column([luck[row] for row in rows], scores_SV)
        if count == 0:
            picked: list[int | None] = list(_invert(scores_SV.softmax(-1), luck_S1))
        else:
            picked = _draw_among(scores_SV, count, [choices[row].sampling for row in rows], luck_S1)
        for row, token in zip(rows, picked, strict=True):
            if token is None:
                rows_of.setdefault(min(count * GROWTH, vocabulary), []).append(row)
            else:
                tokens[row] = token
    return tokens


def _candidates_needed(sampling: Sampling, vocabulary: int) -> int:
    """The first of the counts 64, 1024, … that holds the top-k; top-p may turn out to need more."""
    top_k = sampling.top_k if 0 < sampling.top_k < vocabulary else 0
    if not top_k and sampling.top_p == 1.0:
        return 0
    count = FIRST_CANDIDATES
    while count < top_k:
        count *= GROWTH
    return min(count, vocabulary)


def _draw_among(scores_SV: Tensor, count: int, samplings: Sequence[Sampling], luck_S1: Tensor) -> list[int | None]:
    """A token of each row by top-k and top-p; None where `count` candidates hold too little for its top-p."""
    top_p_S1 = _column([sampling.top_p for sampling in samplings], scores_SV)
    probabilities_SC, ids_SC, enough_S = candidates(scores_SV, count, [s.top_k for s in samplings], top_p_S1)
    # a token stays when those likelier than it hold less than top-p together: the likeliest always does
    before_SC = probabilities_SC.cumsum(-1) - probabilities_SC
    kept_SC = probabilities_SC.masked_fill(before_SC >= top_p_S1, 0.0)
    picked_S1 = torch.tensor(_invert(kept_SC, luck_S1), device=ids_SC.device)[:, None]
    tokens = ids_SC.gather(1, picked_S1)[:, 0].tolist()
    return [token if enough else None for token, enough in zip(tokens, enough_S.tolist(), strict=True)]


def candidates(scores_SV: Tensor, count: int, top_k: Sequence[int], top_p_S1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` likeliest tokens: probabilities after top-k, ids, and whether a row's top-p lies within them."""
    vocabulary = scores_SV.shape[1]
    best_SC, ids_SC = scores_SV.topk(count)
    limits_S1 = torch.tensor([min(k or vocabulary, vocabulary) for k in top_k], device=scores_SV.device)[:, None]
    best_SC = best_SC.masked_fill(torch.arange(count, device=scores_SV.device) >= limits_S1, -torch.inf)
    # with top-k, top-p counts what top-k has left; without, the whole vocabulary
    cut_S1 = limits_S1 <= count
    total_S1 = torch.where(cut_S1, best_SC.logsumexp(-1, keepdim=True), scores_SV.logsumexp(-1, keepdim=True))
    probabilities_SC = (best_SC - total_S1).exp()
    enough_S1 = cut_S1 | (probabilities_SC.sum(-1, keepdim=True) >= top_p_S1) | (count == vocabulary)
    return probabilities_SC, ids_SC, enough_S1[:, 0]


def _invert(weights_SC: Tensor, luck_S1: Tensor) -> list[int]:
    """The column where the cumulated weight first exceeds `luck` of the row's whole."""
    cumulated_SC = weights_SC.cumsum(-1)
    target_S1 = luck_S1 * cumulated_SC[:, -1:]
    picked_S = torch.searchsorted(cumulated_SC, target_S1, right=True)[:, 0]
    # luck so near to 1 that rounding reaches the end: the last column that weighs anything
    last_S = weights_SC.shape[1] - 1 - (weights_SC.flip(-1) > 0).int().argmax(-1)
    return list(torch.minimum(picked_S, last_S).tolist())


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]
