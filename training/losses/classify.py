"""The vision stage's loss: what a picture shows, by name, from the mean of the ViT's tokens.

It makes a ViT where there is no pretrained one; the heads are thrown away afterwards. Legend: B samples, N tokens,
D vision width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

UNKNOWN = -1


def classify(
    heads: nn.ModuleDict,
    features_BND: Tensor,
    labels: Mapping[str, Tensor],
    *,
    weights: Mapping[str, float],
    valid_B: Tensor,
    smoothing: float,
) -> Tensor:
    """Cross-entropies of all labels, weighted and summed over valid samples; a label below 0 is not known."""
    mean_BD = features_BND.mean(1)
    total = mean_BD.new_zeros((), dtype=torch.float32)
    for name, head in heads.items():
        logits_BC = head(mean_BD)
        logits_BC = logits_BC if logits_BC.dtype == torch.float64 else logits_BC.float()
        truth_B = torch.where(valid_B & (labels[name] >= 0), labels[name], UNKNOWN)
        lost = cross_entropy(logits_BC, truth_B, reduction="sum", ignore_index=UNKNOWN, label_smoothing=smoothing)
        total = total + weights[name] * lost
    return total
