"""What a process without a picture or a text runs its modules on: zeros, which weigh nothing in any loss."""

from __future__ import annotations

import torch

from training.data.batch import Batch, Captions, Pictures, Rows
from training.model import VisualLanguageModel
from training.recipe import Recipe


def blank_pictures(batch: Batch, model: VisualLanguageModel, recipe: Recipe) -> Pictures:
    """As many as there are samples where each needs one; else one, so that the modules are run."""
    config, size = model.config, model.preprocessing.size
    count = 1 if set(recipe.losses) == {"lm"} else len(batch.valid_B)
    zeros = torch.zeros((), device=batch.valid_B.device)
    if recipe.images.cache == "tokens":
        return Pictures(tokens_IQD=zeros.expand(count, config.queries, config.qformer_width))
    if recipe.images.cache == "features":
        return Pictures(features_IND=zeros.expand(count, 1, config.vision_width))
    return Pictures(pixels_I3SS=zeros.expand(count, 3, size, size))


def blank_captions(batch: Batch, count: int) -> Captions:
    """`count` texts of two tokens."""
    ids_BT = batch.valid_B.new_zeros(count, 2, dtype=torch.long)
    return Captions(ids_BT, torch.ones_like(ids_BT))


def blank_rows(batch: Batch) -> Rows:
    """One row of two positions, of which none is learnt."""
    zeros = batch.valid_B.new_zeros(1, 2, dtype=torch.long)
    return Rows(zeros, zeros - 1, zeros, zeros, zeros.bool(), zeros, zeros)
