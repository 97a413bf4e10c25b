"""ITC, image-text contrast, as in BLIP-2: an image and its text are alike, and unlike all others of the micro-batch.

The similarity of an image and a text is the best cosine over the image's queries, divided by a learnt temperature.
Legend: B own samples, G samples of the global micro-batch, Q queries, J joint width.

Beside LAVIS: samples of one group are the same thing and share the target equally (LAVIS does so only where it trains
retrieval), samples that could not be read are neither rows nor columns, and columns of other processes give gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

TEMPERATURE = 0.07
_LOWEST, _HIGHEST = 0.001, 0.5


def similarity(images_BQJ: Tensor, texts_BJ: Tensor, images_GQJ: Tensor, texts_GJ: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines [B, G] of own images with all texts, and of own texts with all images; all given as unit vectors."""
    to_text_BG = torch.einsum("bqj,gj->bgq", images_BQJ, texts_GJ).amax(-1)
    to_image_BG = torch.einsum("bj,gqj->bgq", texts_BJ, images_GQJ).amax(-1)
    return to_text_BG, to_image_BG


def bounded(temperature: Tensor) -> Tensor:
    """The temperature within ALBEF's and BLIP's bounds. They write it back into the parameter; here the gradient
    passes as if there were no bound, so that the parameter may be sharded and still comes back from outside."""
    return temperature + (temperature.detach().clamp(_LOWEST, _HIGHEST) - temperature.detach())


def targets(
    group_B: Tensor, group_G: Tensor, valid_G: Tensor, smoothing: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Target distributions [B, G]: equal over the valid samples of one's own group, smoothed over all valid samples."""
    same_BG = ((group_B[:, None] == group_G) & valid_G).to(dtype)
    shared_BG = same_BG / same_BG.sum(1, keepdim=True).clamp(min=1)
    even_G = valid_G.to(dtype) / valid_G.sum().clamp(min=1)
    return (1 - smoothing) * shared_BG + smoothing * even_G


def contrast(to_text_BG: Tensor, to_image_BG: Tensor, targets_BG: Tensor, valid_B: Tensor, valid_G: Tensor) -> Tensor:
    """Cross-entropy from image to text and from text to image, averaged, summed over own valid samples."""
    both_B = (_cross_entropy(to_text_BG, targets_BG, valid_G) + _cross_entropy(to_image_BG, targets_BG, valid_G)) / 2
    return torch.where(valid_B, both_B, 0).sum()


def _cross_entropy(scores_BG: Tensor, targets_BG: Tensor, valid_G: Tensor) -> Tensor:
    # The lowest number and not -inf: a micro-batch without any valid sample must not become NaN.
    scores_BG = scores_BG.masked_fill(~valid_G, torch.finfo(scores_BG.dtype).min)
    logs_BG = scores_BG.log_softmax(-1).masked_fill(~valid_G, 0)
    return -(targets_BG * logs_BG).sum(-1)
