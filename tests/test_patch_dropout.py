"""Patches left out of the ViT: which ones, when, and what the losses then see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import tiny
from tests.micro_batches import batch, objectives, piece, recipe
from training.data.batch import Batch
from training.objectives import Objectives
from training.patch_dropout import drops, kept_tokens
from training.peers import Peers
from training.recipe import Images, Optimizer

PATCHES, SEED = 36, 11
HALF = recipe(
    "classify",
    learn={"vision": 1.0},
    labels={"concept": 1.0},
    images=Images(patch_dropout=0.5, patch_dropout_until=0.75),
    optimizer=Optimizer(steps=8),
    label_smoothing=0.0,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_checkpoint(tmp_path_factory.mktemp("plain"))


def vision_of(made: Objectives) -> nn.Module:
    assert made.model.vision is not None
    return made.model.vision


def pixels_of(of: Batch) -> torch.Tensor:
    assert of.pictures is not None
    assert of.pictures.pixels_I3SS is not None
    return of.pictures.pixels_I3SS


def test_half_of_the_patches_stay_and_the_class_token_always() -> None:
    kept = kept_tokens(SEED, range(200), PATCHES, 0.5)
    assert kept.shape == (200, 19)
    assert (kept[:, 0] == 0).all()
    assert (kept.diff(dim=1) > 0).all()
    assert kept.max() == PATCHES
    # Each patch stays in about half of the samples: 100 of 200, and 5 standard deviations are 35.
    stays = torch.bincount(kept[:, 1:].flatten(), minlength=PATCHES + 1)[1:]
    assert stays.min() > 65
    assert stays.max() < 135


def test_a_sample_keeps_the_same_patches_in_any_company() -> None:
    together = kept_tokens(SEED, [4, 9, 7], PATCHES, 0.5)
    assert torch.equal(kept_tokens(SEED, [7], PATCHES, 0.5)[0], together[2])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(kept_tokens(SEED + 1, [7], PATCHES, 0.5)[0], together[2])


def test_at_least_one_patch_stays() -> None:
    assert kept_tokens(SEED, [0], PATCHES, 1.0).shape == (1, 2)


def test_the_last_steps_see_all_patches() -> None:
    assert [drops(HALF, step) for step in range(8)] == [True] * 6 + [False] * 2
    assert not drops(replace(HALF, images=Images()), 0)


def test_the_vit_sees_only_what_stays_and_at_its_own_place(checkpoint: Path) -> None:
    """The same pictures with every other patch altered give the same: what is left out cannot matter."""
    made, of = objectives(checkpoint, HALF, classes={"concept": 3}), batch()
    vision, pixels = vision_of(made), pixels_of(of)
    kept = kept_tokens(HALF.seed, of.position_B.tolist(), vision.embeddings.num_patches, 0.5)
    side, size = pixels.shape[-1] // vision.embeddings.patch_size, vision.embeddings.patch_size
    for sample, row in enumerate(kept.tolist()):
        for patch in set(range(side * side)) - {token - 1 for token in row}:
            down, right = divmod(patch, side)
            pixels[sample, :, down * size : (down + 1) * size, right * size : (right + 1) * size] += 3
    altered = made(of, Peers()).sums["classify"]
    assert altered.item() == pytest.approx(made(batch(), Peers()).sums["classify"].item(), rel=1e-12)
    whole = made(replace(of, step=6), Peers()).sums["classify"]
    assert whole.item() != pytest.approx(made(replace(batch(), step=6), Peers()).sums["classify"].item(), rel=1e-6)


def test_all_tokens_kept_is_the_vit_itself(checkpoint: Path) -> None:
    made, of = objectives(checkpoint, HALF, classes={"concept": 3}), batch()
    every = torch.arange(vision_of(made).embeddings.num_positions).expand(len(of.valid_B), -1)
    assert torch.allclose(made.model.features(pixels_of(of), every), made.model.features(pixels_of(of)), atol=1e-12)


def test_two_processes_leave_out_what_one_does(checkpoint: Path) -> None:
    made, whole = objectives(checkpoint, HALF, classes={"concept": 3}), batch()
    parts = [made(piece(whole, rank, 2), Peers()).sums["classify"].item() for rank in range(2)]
    assert sum(parts) == pytest.approx(made(whole, Peers()).sums["classify"].item(), rel=1e-12)
