"""What one process trains on in one micro-batch, as tensors. Legend: B samples, I images, R rows, T positions.

A batch holds the samples `[first, first + B)` of a *global* micro-batch of `total` samples: each knows its place
there, so that losses over all processes (contrastive ones) come out the same on any number of processes.
A sample that could not be read stays in its place with `valid_B` False and takes no part in any loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
TEXT = -1


@dataclass(frozen=True)
class Pictures:
    """The images of a batch: exactly one of pixels, features (ViT output) or tokens (Q-Former output) is set."""

    pixels_I3SS: Tensor | None = None
    features_IND: Tensor | None = None
    tokens_IQD: Tensor | None = None

    def __len__(self) -> int:
        return next(len(x) for x in (self.pixels_I3SS, self.features_IND, self.tokens_IQD) if x is not None)


@dataclass(frozen=True)
class Captions:
    """Texts in the Q-Former's tokenizer, one a sample: right-padded ids and mask (1 where a token is)."""

    ids_BT: Tensor
    mask_BT: Tensor


@dataclass(frozen=True)
class Rows:
    """Text and visual tokens laid out for the LLaMA.

    `visual_RT` is TEXT, or which visual token stands here: image number in the batch x queries + query number.
    `segment_RT` numbers the samples of a row from 1; 0 is padding. A position sees earlier positions of its own
    segment. `learnt_RT` marks tokens that are to be predicted; `source_RT` is the source's number.
    `sample_RT` is the sample's place in the batch (0 at padding).

    `until_RT` is there where samples share their beginnings (training/data/sharing.py): a position is seen by the
    positions from itself up to `until`, whatever their segment.
    """

    ids_RT: Tensor
    visual_RT: Tensor
    position_RT: Tensor
    segment_RT: Tensor
    learnt_RT: Tensor
    source_RT: Tensor
    sample_RT: Tensor
    until_RT: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """See the module. `pictures` is None when no sample of the batch has an image."""

    step: int
    micro: int
    first: int
    total: int
    source_B: Tensor
    position_B: Tensor
    valid_B: Tensor
    group_B: Tensor
    pictures: Pictures | None = None
    captions: Captions | None = None
    rows: Rows | None = None
    instructions: Captions | None = None
    labels: Mapping[str, Tensor] | None = None


def to_device(value: T, device: torch.device) -> T:
    """The same dataclass with every tensor on `device`."""
    mapped: T = _map(value, device)
    return mapped


def _map(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {name: _map(one, device) for name, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{one.name: _map(getattr(value, one.name), device) for one in fields(value)})
    return value
