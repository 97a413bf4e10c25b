"""LM, the LLaMA's own loss: the next token of the answers, and of nothing else.

Logits are made only where the next token is learnt: of a row that is mostly picture, question and padding, the
largest matrix of the model then sees the few positions that count. Legend: R rows, T positions, K learnt tokens,
D LLaMA width, S sources.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from training.data.batch import Rows


class LanguageLoss(NamedTuple):
    """The sum with gradient, and without it sums and numbers of tokens by source."""

    sum: Tensor
    by_source_2S: Tensor


def predicted(rows: Rows, valid_B: Tensor) -> Tensor:
    """Which positions [R, T - 1] have a next token to predict: a learnt one of a valid sample in the same segment."""
    segment_RT = rows.segment_RT
    within = (segment_RT[:, 1:] == segment_RT[:, :-1]) & (segment_RT[:, 1:] > 0)
    return rows.learnt_RT[:, 1:].bool() & within & valid_B[rows.sample_RT[:, 1:]]


def language(head: nn.Module, hidden_RTD: Tensor, rows: Rows, valid_B: Tensor, sources: int) -> LanguageLoss:
    """Summed cross-entropy in float32, without label smoothing. `head` is the LLaMA's lm_head."""
    chosen = predicted(rows, valid_B)
    logits_KV: Tensor = head(hidden_RTD[:, :-1][chosen])
    logits_KV = logits_KV if logits_KV.dtype == torch.float64 else logits_KV.float()
    lost_K = cross_entropy(logits_KV, rows.ids_RT[:, 1:][chosen], reduction="none")
    source_K = rows.source_RT[:, 1:][chosen]
    by_source_2S = lost_K.new_zeros(2, sources)
    by_source_2S[0].index_add_(0, source_K, lost_K.detach())
    by_source_2S[1].index_add_(0, source_K, torch.ones_like(lost_K))
    return LanguageLoss(lost_K.sum(), by_source_2S)
