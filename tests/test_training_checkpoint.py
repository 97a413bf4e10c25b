"""Checkpoints come back bit for bit, whole or not at all, and from the newest attempt only."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.checkpoints import alone, empty, leaves, loaded, names, same, save, state_of
from training.errors import BadConfig, Fenced, TrainingError


def test_every_bit_comes_back(tmp_path: Path) -> None:
    odd = torch.tensor([0x7FC00001, 0xFF800000, 0x80000000, 1], dtype=torch.int64).to(torch.int32).view(torch.float32)
    parameter = nn.Parameter(odd.clone())
    checkpoints = alone(tmp_path)
    assert checkpoints.latest() is None
    checkpoints.save(5, {"odd": parameter, "view": odd[1:3]}, {"cursor": {"位置": 7}})
    assert checkpoints.finish()
    published = checkpoints.latest()
    assert published is not None
    assert (published.step, published.attempt) == (5, 1)
    into = {"odd": nn.Parameter(torch.zeros(4)), "view": torch.zeros(2)}
    targets = list(into.values())
    assert checkpoints.load(published, into) == {"cursor": {"位置": 7}}
    assert same(targets, [odd, odd[1:3]])
    checkpoints.close()


def test_what_changes_after_save_is_not_in_the_checkpoint(tmp_path: Path) -> None:
    checkpoints = alone(tmp_path)
    tensors, state = state_of(1, 400_000), {"step": 1, "list": [1]}
    for step in (1, 2):  # the second copies into the memory of the first
        checkpoints.save(step, tensors, state)
        for tensor in (leaf for leaf in leaves(tensors) if isinstance(leaf, Tensor)):
            tensor.fill_(0)
        tensors["plain"].append("later")
        state["list"] = []
        checkpoints.finish()
        published = checkpoints.latest()
        assert published is not None
        into = empty(400_000)
        assert checkpoints.load(published, into) == {"step": step, "list": [step]}
        assert same(into, state_of(step, 400_000))
        tensors, state = state_of(2, 400_000), {"step": 2, "list": [2]}
    assert checkpoints.last_stall_seconds > 0.0


def test_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = alone(tmp_path, keep=3)
    save(checkpoints, 10, 20, 30, 40, 50)
    assert names(tmp_path) == ["step-000000030", "step-000000040", "step-000000050"]
    step, tensors = loaded(checkpoints)
    assert step == 50
    assert same(tensors, state_of(50))
    with pytest.raises(BadConfig, match="keep is 0"):
        alone(tmp_path / "other", keep=0)


def test_an_attempt_number_is_used_once_and_only_upwards(tmp_path: Path) -> None:
    alone(tmp_path, attempt=2)
    with pytest.raises(Fenced, match=r"attempt 2 has run in .* before"):
        alone(tmp_path, attempt=2)
    with pytest.raises(Fenced, match="attempt 2 owns"):
        alone(tmp_path, attempt=1)
    alone(tmp_path, attempt=3)


def test_an_older_attempt_publishes_nothing_after_a_newer_one_has_claimed(tmp_path: Path) -> None:
    old = alone(tmp_path)
    save(old, 10)
    new = alone(tmp_path, attempt=2)
    old.save(20, state_of(20), {"step": 20})
    with pytest.raises(Fenced, match="attempt 2 owns"):
        old.finish()
    assert names(tmp_path) == ["step-000000010"]
    assert loaded(new)[0] == 10
    save(new, 20, 30)
    old.save(25, state_of(25), {"step": 25})
    with pytest.raises(Fenced):
        old.save(26, state_of(26), {"step": 26})
    assert names(tmp_path) == ["step-000000020", "step-000000030"]


def test_poll_tells_of_an_ended_save_without_waiting(tmp_path: Path) -> None:
    old = alone(tmp_path)
    old.poll()
    alone(tmp_path, attempt=2)
    old.save(20, state_of(20), {"step": 20})

    def poll_until_it_tells() -> None:
        while True:
            old.poll()

    with pytest.raises(Fenced):
        poll_until_it_tells()


def truncate(folder: Path) -> None:
    data = folder / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-1])


def flip(folder: Path) -> None:
    data = bytearray((folder / "__0_0.distcp").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "__0_0.distcp").write_bytes(data)


def lose(folder: Path) -> None:
    (folder / "state.json").unlink()


def scribble(folder: Path) -> None:
    (folder / "COMMIT").write_text('{"version": 1, "files": [')


def foreign(folder: Path) -> None:
    (folder / "COMMIT").write_text('{"version": 2}')


@pytest.mark.parametrize("damage", [truncate, flip, lose, scribble, foreign])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    save(alone(tmp_path), 10, 20)
    damage(tmp_path / "step-000000020")
    again = alone(tmp_path, attempt=2)
    step, tensors = loaded(again)
    assert step == 10
    assert same(tensors, state_of(10))
    (warning,) = [record for record in caplog.records if record.name.startswith("training.")]
    assert warning.levelname == "WARNING"
    assert f"{tmp_path}/step-000000020/" in warning.getMessage()
    save(again, 20)  # takes the place of the damaged one
    assert loaded(again)[0] == 20


def test_a_damaged_checkpoint_does_not_take_the_place_of_one_to_keep(tmp_path: Path) -> None:
    save(alone(tmp_path), 10, 20)
    flip(tmp_path / "step-000000020")
    again = alone(tmp_path, attempt=2, keep=2)
    assert loaded(again)[0] == 10
    save(again, 15)
    assert names(tmp_path) == ["step-000000010", "step-000000015"]


def test_a_newer_attempt_removes_what_was_left_unfinished(tmp_path: Path) -> None:
    save(alone(tmp_path, keep=9), 10, 20, 30, 40)
    shutil.move(tmp_path / "step-000000020", tmp_path / "step-000000020.tmp-1")
    shutil.move(tmp_path / "step-000000030", tmp_path / "step-000000030.tmp-7")
    (tmp_path / "step-000000040" / "COMMIT").rename(tmp_path / "step-000000040" / ".COMMIT.tmp")
    again = alone(tmp_path, attempt=2)
    assert names(tmp_path) == ["step-000000010", "step-000000030.tmp-7"]
    assert loaded(again)[0] == 10


def test_a_whole_checkpoint_of_the_same_step_stays(tmp_path: Path) -> None:
    save(alone(tmp_path), 10)
    before = (tmp_path / "step-000000010" / "COMMIT").read_bytes()
    save(alone(tmp_path, attempt=2), 10)
    assert names(tmp_path) == ["step-000000010"]
    assert (tmp_path / "step-000000010" / "COMMIT").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tensors: tensors["weights"].pop("b"), "has weights.b, which this run does not have"),
        (lambda tensors: tensors["weights"].update(c=torch.zeros(1)), "does not fit what this run trains: .*weights.c"),
        (lambda tensors: tensors["weights"].update(b=torch.zeros(7)), "does not fit what this run trains: .*weights.b"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    checkpoints = alone(tmp_path)
    save(checkpoints, 10)
    published = checkpoints.latest()
    assert published is not None
    tensors = empty()
    change(tensors)
    with pytest.raises(BadConfig, match=sentence):
        checkpoints.load(published, tensors)


def test_a_folder_that_cannot_be_made_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"file/checkpoints cannot be claimed: .*Not a directory"):
        alone(tmp_path / "file" / "checkpoints")
