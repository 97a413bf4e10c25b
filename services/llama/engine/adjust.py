"""What is done to logits before a token is drawn: bias, penalties, and what a JSON schema allows.

All rows at once, and of each only the few entries concerned: a whole row is touched by a schema alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from services.llama.engine.choice import Choice


def adjust(logits_SV: Tensor, choices: Sequence[Choice]) -> None:
    """Changes float32 `logits_SV` in place, row by row for its `choices`."""
    _bias(logits_SV, [(row, choice) for row, choice in enumerate(choices) if choice.sampling.logit_bias])
    _penalise(logits_SV, [(row, choice) for row, choice in enumerate(choices) if len(choice.tally)])
    _guide(logits_SV, [(row, choice) for row, choice in enumerate(choices) if choice.guide])


def _bias(logits_SV: Tensor, rows: Sequence[tuple[int, Choice]]) -> None:
    if not rows:
        return
    entries = [(row, token, bias) for row, choice in rows for token, bias in choice.sampling.logit_bias]
    rows_E, tokens_E, biases_E = zip(*entries, strict=True)
    device = logits_SV.device
    index = (torch.tensor(rows_E, device=device), torch.tensor(tokens_E, device=device))
    logits_SV.index_put_(index, torch.tensor(biases_E, dtype=torch.float32, device=device), accumulate=True)


def _penalise(logits_SV: Tensor, rows: Sequence[tuple[int, Choice]]) -> None:
    """E entries: every token that some row's penalties count.

    Repetition is CTRL's (Keskar et al. 2019), as in transformers: a positive logit is divided, a negative one
    multiplied. Then OpenAI's: logit - times generated * frequency - (generated at all) * presence.
    """
    if not rows:
        return
    counts = [len(choice.tally) for _, choice in rows]

    def entries(values: Sequence[float]) -> Tensor:
        return torch.from_numpy(np.repeat(np.array(values, dtype=np.float32), counts)).to(logits_SV.device)

    starts_E = np.repeat(np.array([row * logits_SV.shape[1] for row, _ in rows]), counts)
    index_E = torch.from_numpy(starts_E + np.concatenate([choice.tally.ids for _, choice in rows]))
    generated_E = torch.from_numpy(np.concatenate([choice.tally.generated for _, choice in rows])).to(logits_SV.device)
    repetition_E = entries([choice.sampling.repetition_penalty for _, choice in rows])
    frequency_E = entries([choice.sampling.frequency_penalty for _, choice in rows])
    presence_E = entries([choice.sampling.presence_penalty for _, choice in rows])
    flat = logits_SV.view(-1)
    index_E = index_E.to(logits_SV.device)
    scores_E = flat[index_E]
    scores_E = torch.where(scores_E < 0, scores_E * repetition_E, scores_E / repetition_E)
    flat[index_E] = scores_E - generated_E * frequency_E - (generated_E > 0) * presence_E


def _guide(logits_SV: Tensor, rows: Sequence[tuple[int, Choice]]) -> None:
    if not rows:
        return
    masks = [choice.guide.mask() for _, choice in rows if choice.guide]
    bits_GV = np.unpackbits(np.stack(masks), axis=1, count=logits_SV.shape[1], bitorder="little")
    forbidden_GV = torch.from_numpy(bits_GV == 0).to(logits_SV.device)
    for (row, _), forbidden_V in zip(rows, forbidden_GV, strict=True):
        logits_SV[row].masked_fill_(forbidden_V, -torch.inf)
