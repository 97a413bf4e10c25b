"""Chooses the next token of every request at once, each by its own `Sampling`.

A draw is one number from the request's own generator, turned into a token through the cumulated probabilities, so
that neighbours in the batch never change an answer. Only a few candidates are sorted: a full sort of a
vocabulary for each token would cost more than the model does. Rows that want the likeliest
token and nothing else cost one argmax together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from services.llama.engine.adjust import adjust
from services.llama.engine.choice import Choice, Chosen
from services.llama.engine.logprobs import Logprobs
from services.llama.engine.sampling import Sampling

FIRST_CANDIDATES = 64
GROWTH = 16
FLAT = 1 << 40  # in the place of a number of candidates: top-p of a row whose likeliest hold too little
TRIES = 16


def choose(logits_SV: Tensor, choices: Sequence[Choice]) -> list[Chosen]:
    """The next token of each row of float32 `logits_SV`, which may be overwritten."""
    if all(choice.plain for choice in choices):
        return [Chosen(token) for token in _likeliest(logits_SV)]
    logprobs = Logprobs(logits_SV, choices)
    adjust(logits_SV, choices)
    return logprobs.of(_tokens(logits_SV, choices))


def _tokens(logits_SV: Tensor, choices: Sequence[Choice]) -> list[int]:
    sampled = [row for row, choice in enumerate(choices) if not choice.sampling.greedy]
    if not sampled:
        return _likeliest(logits_SV)
    if len(sampled) == len(choices):
        return _draw(logits_SV, choices)
    tokens = _likeliest(logits_SV)
    drawn = _draw(logits_SV[sampled], [choices[row] for row in sampled])
    for row, token in zip(sampled, drawn, strict=True):
        tokens[row] = token
    return tokens


def _likeliest(logits_SV: Tensor) -> list[int]:
    """The first of the highest in each row. On a CPU, numpy's argmax is several times as fast as torch's."""
    if logits_SV.is_cpu:
        return list(logits_SV.numpy().argmax(-1).tolist())
    return list(logits_SV.argmax(-1).tolist())


def _draw(logits_SV: Tensor, choices: Sequence[Choice]) -> list[int]:
    """Which way a row takes depends on its own settings alone: its neighbours must not change its answer."""
    vocabulary = logits_SV.shape[1]
    scaled_SV = logits_SV / _column([choice.sampling.temperature for choice in choices], logits_SV)
    luck = [choice.generator.random() for choice in choices]
    tokens = [0] * len(choices)
    rows_of: dict[int, list[int]] = {}  # how many candidates a row needs; 0: all in their own order
    for row, choice in enumerate(choices):
        rows_of.setdefault(_candidates_needed(choice.sampling, vocabulary), []).append(row)
    while rows_of:
        count = min(rows_of)
        rows = rows_of.pop(count)
        scores_SV = scaled_SV if len(rows) == len(choices) else scaled_SV[rows]
        luck_S1 = _column([luck[row] for row in rows], scores_SV)
        if count == 0:
            picked: list[int | None] = list(_invert(scores_SV.softmax(-1), luck_S1))
        elif count == FLAT:
            picked = _draw_and_reject(scores_SV, [choices[row] for row in rows], [luck[row] for row in rows])
        else:
            picked = _draw_among(scores_SV, count, [choices[row].sampling for row in rows], luck_S1)
        for row, token in zip(rows, picked, strict=True):
            if token is not None:
                tokens[row] = token
            elif count == FIRST_CANDIDATES:
                rows_of.setdefault(FLAT, []).append(row)
            else:
                rows_of.setdefault(vocabulary, []).append(row)
    return tokens


def _candidates_needed(sampling: Sampling, vocabulary: int) -> int:
    """The first of the counts 64, 1024, … that holds the top-k; top-p alone may turn out to need more."""
    top_k = sampling.top_k if 0 < sampling.top_k < vocabulary else 0
    if not top_k and sampling.top_p == 1.0:
        return 0
    count = FIRST_CANDIDATES
    while count < top_k:
        count *= GROWTH
    return min(count, vocabulary)


def _draw_and_reject(scores_SV: Tensor, choices: Sequence[Choice], luck: list[float]) -> list[int | None]:
    """A token by top-p out of a flat row, without sorting it: draws from all tokens until one lies within.

    What is accepted has the distribution of what lies within. A token does when those likelier than it hold less than
    top-p together. None where `TRIES` draws all lay outside, as with a small top-p they may.
    """
    probabilities_SV = scores_SV.softmax(-1)
    tokens: list[int | None] = [None] * len(choices)
    left = list(range(len(choices)))
    for _ in range(TRIES):
        rows_SV = probabilities_SV[left]
        picked = _invert(rows_SV, _column([luck[row] for row in left], rows_SV))
        own_S1 = rows_SV.gather(1, torch.tensor(picked, device=rows_SV.device)[:, None])
        before_S = rows_SV.masked_fill(rows_SV <= own_S1, 0.0).sum(-1).tolist()
        for row, token, before in zip(left, picked, before_S, strict=True):
            if before < choices[row].sampling.top_p:
                tokens[row] = token
            else:
                luck[row] = choices[row].generator.random()
        left = [row for row in left if tokens[row] is None]
        if not left:
            break
    return tokens


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
