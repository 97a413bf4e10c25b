"""Captions in groups of like length: nothing is lost or misplaced, and no loss or gradient changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.micro_batches import batch, captions, objectives, recipe
from training.losses.lengths import by_length, in_order
from training.peers import Peers
from training.recipe import Text

LENGTHS = [5, 9, 3, 3, 7, 12, 4]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_checkpoint(tmp_path_factory.mktemp("retrieval"), retrieval=True)


@pytest.mark.parametrize("groups", [1, 2, 3, 7, 50])
def test_every_text_is_in_one_group_and_goes_back_to_its_place(groups: int) -> None:
    texts = captions(LENGTHS)
    parts = list(by_length(texts, groups))
    assert len(parts) == min(groups, len(LENGTHS))
    for rows, some in parts:
        assert some.mask_BT.sum(1).tolist() == [LENGTHS[row] for row in rows.tolist()]
        assert torch.equal(some.ids_BT, texts.ids_BT[rows, : some.ids_BT.shape[1]])
    first = in_order([rows for rows, _ in parts], [some.ids_BT[:, :2] for _, some in parts])
    assert torch.equal(first, texts.ids_BT[:, :2])


def test_a_group_is_as_wide_as_its_longest_text() -> None:
    assert [some.ids_BT.shape[1] for _, some in by_length(captions(LENGTHS), 3)] == [4, 7, 12]


@pytest.mark.parametrize("memory", [0, 2])
def test_losses_and_gradients_are_those_of_all_texts_together(checkpoint: Path, memory: int) -> None:
    found = []
    for groups in (1, 3):
        how = recipe("itc", "itm", "itg", text=Text(caption_groups=groups, caption_tokens=12), negative_memory=memory)
        made = objectives(checkpoint, how)
        sums = [made(of, Peers()).sums for of in (batch(7), batch(7))][-1]
        torch.stack(list(sums.values())).sum().backward()
        slopes = {name: weight.grad for name, weight in made.named_parameters() if weight.grad is not None}
        found.append(({name: value.item() for name, value in sums.items()}, slopes))
    (whole, slopes), (grouped, others) = found
    assert grouped == pytest.approx(whole, rel=1e-12)
    assert slopes.keys() == others.keys()
    assert all(torch.allclose(slopes[name], others[name], atol=1e-10) for name in slopes)
