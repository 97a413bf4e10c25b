"""ITM, image-text matching, as in BLIP-2: do this image and this text belong together? Yes or no, from all queries.

Each sample gives three pairs: itself, its text with a wrong image, its image with a wrong text. The wrong ones are
hard: drawn from all other groups of the global micro-batch in proportion to exp(ITC similarity). They are drawn as
the largest of similarity plus Gumbel noise, which is the same distribution; the noise depends on the run's seed and the
sample's position alone, so the same ones are drawn on any number of processes.

A sample for which the micro-batch holds no possible wrong one has its own pair only; the other two weigh nothing, and
still count as pairs, so that the count is known before the forward pass and nothing is weighed up for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

PAIRS = 3


class Negatives(NamedTuple):
    """For each own sample the place of a wrong image and of a wrong text among all G; `there_B` says if any exists."""

    image_B: Tensor
    text_B: Tensor
    there_B: Tensor


def noise(seed: int, positions: Sequence[int], total: int) -> Tensor:
    """Gumbel noise [2, B, total] for images and texts, of each sample by itself."""
    rows = [np.random.Generator(np.random.Philox(key=_key(seed, at))).gumbel(size=(2, total)) for at in positions]
    return torch.from_numpy(np.stack(rows, axis=1).astype(np.float32))


def _key(seed: int, position: int) -> int:
    return ((seed % (1 << 64)) << 64) | (position % (1 << 64))


def draw_negatives(to_text_BG: Tensor, to_image_BG: Tensor, possible_BG: Tensor, noise_2BG: Tensor) -> Negatives:
    """`possible_BG` says which of all samples is valid and another thing than one's own."""

    def draw(scores_BG: Tensor, noise_BG: Tensor) -> Tensor:
        return (scores_BG + noise_BG).masked_fill(~possible_BG, float("-inf")).argmax(1)

    return Negatives(draw(to_image_BG, noise_2BG[0]), draw(to_text_BG, noise_2BG[1]), possible_BG.any(1))


def matching(logits_PB2: Tensor, valid_B: Tensor, there_B: Tensor) -> Tensor:
    """Summed cross-entropy over the three kinds of pairs (own, wrong image, wrong text); index 1 is "they match"."""
    pairs, size = logits_PB2.shape[:2]
    truth_PB = torch.zeros(pairs, size, dtype=torch.long, device=logits_PB2.device)
    truth_PB[0] = 1
    lost_PB = cross_entropy(logits_PB2.flatten(0, 1), truth_PB.flatten(), reduction="none").view(pairs, size)
    used_PB = torch.stack([valid_B, valid_B & there_B, valid_B & there_B])
    return torch.where(used_PB, lost_PB, 0).sum()
