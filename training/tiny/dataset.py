"""Training pictures in memory, and the few that are held out to watch training by.

The validation set is EmojiOne 2's drawing of some seen concepts: their other drawings are trained on, so
it asks what the test asks (a known thing drawn anew) without touching the test style.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.tiny.emoji import Concept, EmojiData, Picture
from training.tiny.pictures import decode_all
from training.tiny.recipe import Recipe

VALIDATION_STYLE = "emojione"


@dataclass(frozen=True)
class Labels:
    """Class numbers of each picture: seen concepts are numbered 0.. without gaps."""

    concept: Tensor
    group: Tensor
    subgroup: Tensor


@dataclass(frozen=True)
class Dataset:
    """Pictures as uint8[N, 4, px, px] (premultiplied), where they came from, and their labels."""

    pictures: tuple[Picture, ...]
    pixels_NCHW: Tensor
    labels: Labels


def class_names(data: EmojiData) -> tuple[list[int], list[str], list[str]]:
    """Concept numbers, groups and subgroups in the order of their class numbers."""
    seen = [concept for concept in data.concepts if concept.seen]
    groups = sorted({concept.group_en for concept in data.concepts})
    subgroups = sorted({concept.subgroup for concept in data.concepts})
    return [concept.index for concept in seen], groups, subgroups


def split(data: EmojiData, recipe: Recipe) -> tuple[list[Picture], list[Picture]]:
    """Training pictures and validation pictures; no unseen concept is in either."""
    pictures = data.training_pictures()
    candidates = [picture.concept.index for picture in pictures if picture.style == VALIDATION_STYLE]
    held = set(random.Random(recipe.seed).sample(candidates, recipe.vision.validation_concepts))
    train: list[Picture] = []
    validation: list[Picture] = []
    for picture in pictures:
        is_held = picture.style == VALIDATION_STYLE and picture.concept.index in held
        (validation if is_held else train).append(picture)
    return train, validation


def load(data: EmojiData, pictures: Sequence[Picture], recipe: Recipe) -> Dataset:
    pixels = decode_all(pictures, recipe.vision.picture_px, recipe.threads)
    labels = label([picture.concept for picture in pictures], data)
    return Dataset(tuple(pictures), torch.from_numpy(pixels), labels)


def label(concepts: Sequence[Concept], data: EmojiData) -> Labels:
    """Class numbers; an unseen concept has concept class -1."""
    indices, groups, subgroups = class_names(data)
    concept_class = {index: number for number, index in enumerate(indices)}
    return Labels(
        concept=torch.tensor([concept_class.get(concept.index, -1) for concept in concepts]),
        group=torch.tensor([groups.index(concept.group_en) for concept in concepts]),
        subgroup=torch.tensor([subgroups.index(concept.subgroup) for concept in concepts]),
    )


def batch_indices(count: int, batch: int, seed: int, step: int) -> Tensor:
    """Picture numbers of one step: each epoch is its own permutation."""
    per_epoch = count // batch
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return torch.from_numpy(order[place * batch : (place + 1) * batch])


def partners(concepts_N: Tensor, chosen_B: Tensor, draw: torch.Generator) -> Tensor:
    """For each chosen picture another picture number of the same concept (or itself)."""
    order = torch.argsort(concepts_N, stable=True)
    values, counts = torch.unique_consecutive(concepts_N[order], return_counts=True)
    starts = torch.cumsum(counts, 0) - counts
    row = torch.searchsorted(values, concepts_N[chosen_B])
    pick = (torch.rand(len(chosen_B), generator=draw) * counts[row]).long()
    return order[starts[row] + pick]
