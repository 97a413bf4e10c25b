"""Texts of like length together: many short captions need not be padded to the one that is long.

Attention leaves padding out, so a text gives the same in any company; only the arithmetic on padding is saved.
Legend: B texts, T tokens, K texts of a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from training.data.batch import Captions


def by_length(captions: Captions, groups: int) -> Iterator[tuple[Tensor, Captions]]:
    """Up to `groups` times which texts [K], and these, padded to the longest of them; the shortest come first.

    One group is all texts as they stand, in their order. The number of groups depends on B alone, so that processes
    that run sharded modules call them equally often.
    """
    size, device = len(captions.ids_BT), captions.ids_BT.device
    if min(groups, size) <= 1:
        yield torch.arange(size, device=device), captions
        return
    length_B = captions.mask_BT.sum(1)
    for rows_K in torch.argsort(length_B, stable=True).tensor_split(min(groups, size)):
        longest = int(length_B[rows_K].max())
        yield rows_K, Captions(captions.ids_BT[rows_K, :longest], captions.mask_BT[rows_K, :longest])


def chosen(x: Tensor, rows_K: Tensor) -> Tensor:
    """A group's part [K, …] of `x` [B, …]; of the only group `x` itself: features are large, a copy is dear."""
    return x if len(rows_K) == len(x) else x.index_select(0, rows_K)


def in_order(rows: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """The groups' values [K, …] as one [B, …], each where its text stood."""
    if len(values) == 1:
        return values[0]
    return torch.cat(list(values)).index_select(0, torch.argsort(torch.cat(list(rows))))
