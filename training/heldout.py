"""Held-out records with the ViT's features of their pictures, computed once for all checks that ask about them.

Pictures go the road of served ones: `ziya.images`, then the checkpoint's own preprocessing. Of several processes each
reads and encodes its share. Legend: I images of a record, N and D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from training.data.pixels import PixelSource
from training.data.record import Record
from training.data.shards import Dataset
from training.distributed import World
from training.errors import BadSample
from training.model import VisualLanguageModel
from training.recipe import Check, Images
from training.retrieval import Beat
from training.spaced import spaced as spaced

BATCH = 128


@dataclass(frozen=True)
class Item:
    """A usable record and the features of its images, [I, N, D], on the CPU."""

    record: Record
    features_IND: Tensor


class Share(NamedTuple):
    """What this process has of a dataset, and how many records of its share cannot be used."""

    items: Sequence[Item]
    bad: int


@dataclass
class HeldOut:
    """Shares by dataset and limit. `forget` when the ViT has changed."""

    model: VisualLanguageModel
    datasets: Mapping[str, Dataset]
    world: World
    _shares: dict[tuple[str, int | None], Share] = field(default_factory=dict, init=False)

    def forget(self) -> None:
        self._shares.clear()

    def share(self, check: Check, beat: Beat) -> Share:
        """This process's part of what the check is about. The model should be in eval mode."""
        place = (check.data, check.limit)
        if place not in self._shares:
            dataset = self.datasets[check.data]
            mine = spaced(len(dataset), check.limit)[self.world.rank :: self.world.size]
            items: list[Item] = []
            for start in range(0, len(mine), BATCH):
                beat(f"encoding pictures of {dataset.name}: {start} of {len(mine)} records")
                items += self._encoded(dataset, mine[start : start + BATCH])
            self._shares[place] = Share(items, len(mine) - len(items))
        return self._shares[place]

    def _encoded(self, dataset: Dataset, numbers: Sequence[int]) -> list[Item]:
        """The usable ones of some records."""
        source = PixelSource(self.model.preprocessing, Images(), 0, keep_bytes=0)
        records: list[Record] = []
        pixels: list[Tensor] = []
        for number in numbers:
            try:
                record = dataset.record(number)
                files = [(record.key, dataset.image(number, image)) for image in range(record.images)]
            except BadSample:
                continue
            made, wrong = source.pixels(files, [0] * len(files))
            if not any(wrong):
                records.append(record)
                pixels.append(made)
        counts = [record.images for record in records]
        if not sum(counts):
            return [Item(record, torch.zeros(0, 1, self.model.config.vision_width)) for record in records]
        features = self.model.features(torch.cat(pixels).to(self.world.device)).cpu()
        return [Item(*one) for one in zip(records, torch.split(features, counts), strict=True)]
