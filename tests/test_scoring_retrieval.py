"""Retrieval with several texts a picture, by brute force and by hand, and its going on after a kill."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.micro_batches import captions
from tests.test_scoring_layouts import picture
from training.errors import BadConfig, BadData
from training.retrieval import hits, numbered, ranked
from training.scoring.checkpoint_target import CheckpointTarget
from training.scoring.item import Item, Picture
from training.scoring.match_memory import MatchMemory
from training.scoring.tasks import TASKS
from training.scoring.zero_shot import Retrieval

PATCHES, WIDTH = 5, 32
EXAMPLES = Path(__file__).parents[1] / "checkpoints" / "ziya-tiny" / "examples"
COLOURS = ("red", "green", "blue", "yellow", "black", "white")


class Kept:
    """A memory that knows some pairs and counts what it is told."""

    def __init__(self) -> None:
        self.odds: dict[int, float] = {}
        self.told = 0

    def known(self, pairs_P: Tensor) -> Tensor:
        return torch.tensor([self.odds.get(pair, float("nan")) for pair in pairs_P.tolist()])

    def keep(self, pairs_P: Tensor, odds_P: Tensor) -> None:
        self.told += len(pairs_P)
        self.odds |= dict(zip(pairs_P.tolist(), odds_P.tolist(), strict=True))


def best_by_hand(module: Any, features: Tensor, texts: Any, top_k: int) -> dict[str, list[list[int]]]:
    """Pair by pair, at a temperature of 0.5."""
    with torch.no_grad():
        images = [module.embed_image(one[None])[0] for one in features]
        words = [
            module.embed_text(ids[None], mask[None])[0] for ids, mask in zip(texts.ids_BT, texts.mask_BT, strict=True)
        ]
        itc = np.array([[float((one @ word).max()) for word in words] for one in images])
        itm = np.zeros_like(itc)
        for i, one in enumerate(features):
            for t, (ids, mask) in enumerate(zip(texts.ids_BT, texts.mask_BT, strict=True)):
                pair = module.match(one[None], ids[None], mask[None])[0]
                itm[i, t] = float(pair[1] - pair[0]) + itc[i, t] / 0.5
    found = {}
    for way, first, again in (("i2t", itc, itm), ("t2i", itc.T, itm.T)):
        orders = [sorted(range(first.shape[1]), key=lambda c, row=row: -row[c]) for row in first]
        found[f"itc_{way}"] = orders
        found[f"itm_{way}"] = [
            sorted(order[:top_k], key=lambda c, row=row: -row[c]) + order[top_k:]
            for order, row in zip(orders, again, strict=True)
        ]
    return found


@pytest.mark.parametrize("top_k", [2, 20])
def test_more_texts_than_pictures_are_ranked_as_brute_force_ranks_them(top_k: int) -> None:
    torch.manual_seed(3)
    module = tiny.qformer_module(text=True, retrieval=True)
    features, texts = torch.randn(4, PATCHES, WIDTH), captions([4 + n % 5 for n in range(9)])
    memory = Kept()
    found = ranked(module, features, texts, top_k=top_k, temperature=0.5, batch=4, memory=memory)
    by_hand = best_by_hand(module, features, texts, top_k)
    assert {way: best.tolist() for way, best in found.items()} == by_hand
    assert found["itm_i2t"].shape == (4, 9)
    assert found["itm_t2i"].shape == (9, 4)
    # With all odds known nothing is matched again; with some, only the others.
    told, memory.told = memory.told, 0
    ranked(module, features, texts, top_k=top_k, temperature=0.5, batch=4, memory=memory)
    assert memory.told == 0
    forgotten = list(memory.odds)[: told // 2]
    for pair in forgotten:
        del memory.odds[pair]
    again = ranked(module, features, texts, top_k=top_k, temperature=0.5, batch=4, memory=memory)
    assert memory.told == len(forgotten)
    assert {way: best.tolist() for way, best in again.items()} == by_hand


def test_hits_of_two_pictures_with_two_texts_each_worked_by_hand() -> None:
    groups, texts = ["a", "b"], ["a", "a", "b", "b"]
    number = numbered([*groups, *texts])
    pictures, words = number[:2], number[2:]
    # Picture a ranks a text of b first, then its own second one; picture b its own first.
    of_pictures = hits(torch.tensor([[2, 1, 0, 3], [3, 0, 1, 2]]), pictures, words)
    assert of_pictures[1].tolist() == [0, 1]
    assert of_pictures[5].tolist() == [1, 1]
    of_texts = hits(torch.tensor([[0, 1], [1, 0], [1, 0], [1, 0]]), words, pictures)
    assert of_texts[1].tolist() == [1, 0, 1, 1]


def test_odds_outlive_a_kill_in_the_middle_of_a_record(tmp_path: Path) -> None:
    memory = MatchMemory(tmp_path)
    memory.keep(torch.tensor([9, 4]), torch.tensor([0.5, -1.0]))
    memory.keep(torch.tensor([7]), torch.tensor([2.0]))
    odds = tmp_path / "odds.bin"
    odds.write_bytes(odds.read_bytes()[:-5])
    again = MatchMemory(tmp_path)
    assert again.known(torch.tensor([4, 7, 9])).nan_to_num(99).tolist() == [-1.0, 99.0, 0.5]
    again.keep(torch.tensor([7]), torch.tensor([2.0]))
    assert MatchMemory(tmp_path).known(torch.tensor([4, 7, 9])).tolist() == [-1.0, 2.0, 0.5]


def test_features_go_on_where_they_were_left(tmp_path: Path) -> None:
    every, asked = torch.arange(24.0).reshape(6, 2, 2), list[int]()

    def encode(start: int, upto: int) -> Tensor:
        asked.append(start)
        if start >= upto:
            raise KeyboardInterrupt
        return every[start : start + 2]

    with pytest.raises(KeyboardInterrupt):
        MatchMemory(tmp_path).features(6, (2, 2), partial(encode, upto=4), 2)
    # What a kill left behind the counted ones is written over.
    with (tmp_path / "features.f32").open("ab") as file:
        file.write(b"half a picture")
    found = MatchMemory(tmp_path).features(6, (2, 2), partial(encode, upto=6), 2)
    assert asked == [0, 2, 4, 4]
    assert found.tolist() == every.tolist()


def items(count: int = 6) -> list[Item]:
    return [
        Item(colour, "en", (colour, f"a {colour} thing"), pictures=(Picture(picture, (colour,)),), group=colour)
        for colour in COLOURS[:count]
    ]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> tuple[CheckpointTarget, Path]:
    folder = tiny.build_checkpoint(tmp_path_factory.mktemp("checkpoint"), retrieval=True)
    return CheckpointTarget.load(folder, 8, "cpu"), folder


def test_a_checkpoint_is_examined_once_and_its_scores_fit_together(
    target: tuple[CheckpointTarget, Path], tmp_path: Path
) -> None:
    doing: list[str] = []
    retrieval = Retrieval(*target, tmp_path, top_k=3, doing=doing.append)
    first = retrieval(TASKS["retrieval"], items())
    assert len(first.scores.metrics) == 12
    assert doing
    for name, each in first.scores.each.items():
        assert len(each) == 6
        # Every picture has as many texts here, so the mean of the items is that of the texts.
        assert sum(each) / 6 == pytest.approx(first.scores.metrics[name])
    assert first.notes == ["among 6 pictures and 12 texts, the best 3 ranked anew"]
    doing.clear()
    second = retrieval(TASKS["retrieval"], items())
    assert not doing
    assert (first.cached, second.cached) == (0, 6)
    assert second.scores == first.scores
    # Other texts, or a new round, are other questions.
    retrieval(TASKS["retrieval"], items(5))
    assert doing
    doing.clear()
    Retrieval(*target, tmp_path, round=1, top_k=3, doing=doing.append)(TASKS["retrieval"], items())
    assert doing


def test_a_killed_retrieval_matches_only_what_is_left(target: tuple[CheckpointTarget, Path], tmp_path: Path) -> None:
    """240 texts of 6 pictures: 1440 pairs, 128 at a time."""
    many = [replace(one, truths=tuple(f"{one.key} {number}" for number in range(40))) for one in items()]
    heard: list[str] = []

    def stop(doing: str) -> None:
        heard.append(doing)
        if sum(one.startswith("matching") for one in heard) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Retrieval(*target, tmp_path / "killed", doing=stop)(TASKS["retrieval"], many)
    assert heard[-1] == "matching pictures and texts: 512 of 1440 pairs"
    left: list[str] = []
    again = Retrieval(*target, tmp_path / "killed", doing=left.append)(TASKS["retrieval"], many)
    assert not [one for one in left if one.startswith("encoding")]
    assert left[-1] == f"matching pictures and texts: {1440 - 384} of {1440 - 384} pairs"
    undisturbed = Retrieval(*target, tmp_path / "whole")(TASKS["retrieval"], many)
    assert again.scores == undisturbed.scores
    # Nothing large stays when it is done.
    left_over = [path for path in (tmp_path / "killed").rglob("*") if path.is_file() and path.stat().st_size]
    assert [path.name for path in left_over] == ["hits.npz"]


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    with MatchMemory(tmp_path), (tmp_path / "lock").open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (tmp_path / "lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_retrieval_says_what_it_cannot_do(target: tuple[CheckpointTarget, Path], tmp_path: Path) -> None:
    with pytest.raises(BadData, match="1 of 1 pictures can be used"):
        Retrieval(*target, tmp_path)(TASKS["retrieval"], items(1))
    plain = tiny.build_checkpoint(tmp_path / "plain")
    without = CheckpointTarget.load(plain, 8, "cpu")
    with pytest.raises(BadConfig, match="no retrieval heads"):
        Retrieval(without, plain, tmp_path)(TASKS["retrieval"], items())


def shipped() -> Sequence[Item]:
    entries = json.loads((EXAMPLES / "examples.json").read_text("utf-8"))
    return [
        Item(
            one["file"],
            "en",
            (one["name_en"],),
            pictures=(Picture(Path.read_bytes, (EXAMPLES / one["file"],)),),
            group=one["file"],
        )
        for one in entries
    ]


def test_ziya_tiny_finds_its_examples_far_above_chance(tmp_path: Path) -> None:
    folder = EXAMPLES.parent
    found = Retrieval(CheckpointTarget.load(folder, 8, "cpu"), folder, tmp_path)(TASKS["retrieval"], shipped())
    # 26 pictures: chance is 4 % at 1 and 38 % at 10.
    assert found.scores.metrics["itm_i2t_r1"] > 0.5
    assert found.scores.metrics["itm_t2i_r10"] > 0.8
