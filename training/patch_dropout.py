"""Patches left out of the ViT while it learns, as in FLIP (arXiv 2212.00794): half the patches, half the arithmetic.

Pictures are told apart by some of their patches well before they are by all, and what is left out varies the
picture, too. The last steps of a stage see all patches, so that the ViT ends with what it will be given.
Which ones are kept depends on the run's seed and the sample's position alone: any number of processes keeps the same.
Legend: B samples, N the ViT's tokens (the class token and the patches), K tokens kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from training.recipe import Recipe

# Streams of one key that never meet: ITM's noise (losses/matching.py) begins at 0.
_COUNTER = (0, 0, 0, 1)


def drops(recipe: Recipe, step: int) -> bool:
    """Whether step `step` (from 0) leaves patches out."""
    images = recipe.images
    return images.patch_dropout > 0 and step < images.patch_dropout_until * recipe.optimizer.steps


def kept_tokens(seed: int, positions: Sequence[int], patches: int, dropout: float) -> Tensor:
    """Numbers [B, K] of the tokens that stay, ascending, the class token first; at least one patch stays."""
    count = max(1, round(patches * (1 - dropout)))
    rows = [np.sort(_generator(seed, position).permutation(patches)[:count]) for position in positions]
    patches_BK = torch.from_numpy(np.stack(rows)) + 1
    return torch.cat([torch.zeros(len(rows), 1, dtype=patches_BK.dtype), patches_BK], dim=1)


def _generator(seed: int, position: int) -> np.random.Generator:
    key = ((seed % (1 << 64)) << 64) | (position % (1 << 64))
    return np.random.Generator(np.random.Philox(key=key, counter=_COUNTER))
