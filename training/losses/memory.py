"""The last micro-batches, for ITM to draw its hard negatives from: one batch alone soon holds no hard ones.

Re-ranking asks ITM about the most similar of all pictures or texts. In a micro-batch of a hundred even the most similar
one is mostly unlike, and there is little to learn from it. So the micro-batches before stand beside it as candidates,
as in cross-batch memory (arXiv 1912.06798). Nothing is encoded again: the features of a frozen ViT are still right, a
text is its tokens, and the joint embeddings, which only decide what is drawn, are those of some steps ago.

All processes hold the same, in the order of the global micro-batch, and a checkpoint has it, so that a resumed run
draws the same. Legend: G samples of a global micro-batch, N ViT features, Q queries, T tokens, J joint width,
C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """One global micro-batch: unit vectors, what is what, and what ITM reads (ids and mask padded to one T always)."""

    images_GQJ: Tensor
    texts_GJ: Tensor
    group_G: Tensor
    valid_G: Tensor
    features_GND: Tensor
    ids_GT: Tensor
    mask_GT: Tensor


@dataclass(frozen=True)
class Candidates:
    """Several micro-batches as one, newest first; features are not copied before some of them are drawn."""

    images_CQJ: Tensor
    texts_CJ: Tensor
    group_C: Tensor
    valid_C: Tensor
    ids_CT: Tensor
    mask_CT: Tensor
    features: Sequence[Tensor]

    def features_of(self, places_P: Tensor) -> Tensor:
        """[P, N, D], by number among all C."""
        samples = len(self.features[0])
        drawn = [self.features[place // samples][place % samples] for place in places_P.tolist()]
        return torch.stack(drawn)


class Memory:
    """Of the last `size` micro-batches given to `remember`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._seen: list[Seen] = []

    def beside(self, now: Seen) -> Candidates:
        """`now` and everything remembered."""
        every = [now, *self._seen]

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(seen, name) for seen in every])

        return Candidates(
            images_CQJ=joined("images_GQJ"),
            texts_CJ=joined("texts_GJ"),
            group_C=joined("group_G"),
            valid_C=joined("valid_G"),
            ids_CT=joined("ids_GT"),
            mask_CT=joined("mask_GT"),
            features=[seen.features_GND for seen in every],
        )

    def remember(self, now: Seen) -> None:
        """The oldest is forgotten for it."""
        self._seen = [now, *self._seen][: self.size]

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """By age and name; a resume loads into them in place, after `lay_out`."""
        return {str(age): dict(vars(seen)) for age, seen in enumerate(self._seen)}

    def layout(self) -> list[dict[str, Any]]:
        """Shapes and types of `tensors`, as JSON."""
        return [
            {name: [str(tensor.dtype).removeprefix("torch."), *tensor.shape] for name, tensor in vars(seen).items()}
            for seen in self._seen
        ]

    def lay_out(self, layout: Sequence[Mapping[str, Sequence[Any]]], device: torch.device) -> None:
        """Makes tensors to load into."""
        names = [field.name for field in fields(Seen)]
        self._seen = [
            Seen(*(torch.zeros(one[name][1:], dtype=getattr(torch, one[name][0]), device=device) for name in names))
            for one in layout
        ]
