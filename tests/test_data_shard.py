"""A data stage in pieces: built once each, whole or not at all, whoever is told to and how often."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training_jobs import write_job
from training.local import LocalRun
from training.stage_folder import StageFolder

BUILDER = """
import os, signal, sys, time
from pathlib import Path

def build_shard(folder, shard, shards, *, words, trouble=None):
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(f"{shard}\\n")
    (folder / "texts").mkdir()
    for number, word in enumerate(words[shard::shards]):
        (folder / "texts" / f"{shard}-{number}.txt").write_text(word, "utf-8")
    if trouble == "slow":
        time.sleep(0.5)
    if trouble == "killed" and not Path(os.environ["CALLS"]).with_name("again").exists():
        Path(os.environ["CALLS"]).with_name("again").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble == "same":
        (folder / "texts" / "index.json").touch()
    if trouble == "raises":
        raise OSError("the disk is full")
"""
JOINED = """
import os, signal
from pathlib import Path

def build_shard(folder, shard, shards):
    (folder / "unjoined").mkdir()
    (folder / "unjoined" / f"{shard}.txt").write_text(f"text {shard}")
    (folder / f"lasting-{shard}.txt").write_text("it stays")

def join(folder, shards):
    with open(os.environ["CALLS"], "a") as calls:
        calls.write("join\\n")
    texts = [(folder / "unjoined" / f"{shard}.txt").read_text() for shard in range(shards)]
    if not (folder / "again").exists():
        (folder / "again").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "all.txt").write_text(", ".join(texts))
    return ["all.txt"]
"""
WHOLE = """
def build(folder, *, word):
    (folder / "kept").mkdir(exist_ok=True)
    (folder / "kept" / word).write_text(word)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "pieces_builder.py").write_text(BUILDER)
    (tmp_path / "modules" / "whole_builder.py").write_text(WHOLE)
    (tmp_path / "modules" / "joining_builder.py").write_text(JOINED)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'modules'}:{Path(__file__).parents[1]}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path


def job(place: Path, *, shards: int = 3, builder: str = "pieces_builder", **options: Any) -> Path:
    options = options or {"words": ["one", "two", "三", "four"]}
    stage = {"name": "texts", "type": "data", "builder": builder, "shards": shards, "options": options}
    return write_job(place, stage)


def start(file: Path, shard: int, stage: str = "texts") -> subprocess.Popen[str]:
    where = ["--stage", stage, "--shard", str(shard), "--output", str(file.parent / "out")]
    command = [sys.executable, "-m", "training.data_shard", str(file), *where]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def build(file: Path, shard: int, stage: str = "texts") -> tuple[int, str, str]:
    process = start(file, shard, stage)
    out, errors = process.communicate()
    return process.returncode, out, errors


def calls(place: Path) -> list[str]:
    return (place / "calls").read_text().split() if (place / "calls").exists() else []


def texts(place: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in (place / "out" / "texts" / "texts").iterdir()}


def test_every_piece_is_built_once_and_the_last_one_finishes_the_stage(place: Path) -> None:
    file, digests = job(place), {}
    for shard in (2, 0, 1):
        assert not StageFolder(place / "out" / "texts").is_done
        code, out, errors = build(file, shard)
        assert code == 0, errors
        told = json.loads(out.splitlines()[-1])
        assert told["shard"] == shard
        digests[shard] = told["digest"]
    assert texts(place) == {"0-0.txt": "one", "0-1.txt": "four", "1-0.txt": "two", "2-0.txt": "三"}
    assert StageFolder(place / "out" / "texts").summary()["artifact"]["digest"].startswith("sha256:")
    assert len(set(digests.values())) == 3
    assert json.loads(build(file, 2)[1]) == {"shard": 2, "digest": digests[2]}
    assert calls(place) == ["2", "0", "1"]
    assert {path.name for path in (place / "out" / "texts" / "shards").glob("*.json")} == {"0.json", "1.json", "2.json"}


def test_a_message_that_comes_twice_at_once_is_done_once(place: Path) -> None:
    file = job(place, words=["a", "b", "c"], trouble="slow")
    processes = [start(file, 0) for _ in range(3)]
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert len({out for out, _ in said}) == 1
    assert calls(place) == ["0"]


def test_a_builder_that_was_killed_leaves_nothing_that_counts(place: Path) -> None:
    file = job(place, shards=1, words=["a"], trouble="killed")
    assert build(file, 0)[0] == -signal.SIGKILL
    assert not (place / "out" / "texts" / "texts").exists()
    code, _, errors = build(file, 0)
    assert code == 0, errors
    assert texts(place) == {"0-0.txt": "a"}
    assert not list((place / "out" / "texts" / "shards").glob(".0.*/"))


def test_a_piece_that_was_damaged_or_asked_for_otherwise_is_built_again(place: Path) -> None:
    file = job(place, shards=1, words=["a"])
    first = build(file, 0)[1]
    (place / "out" / "texts" / "texts" / "0-0.txt").unlink()
    assert build(file, 0)[1] == first
    other = build(job(place, shards=1, words=["b"]), 0)[1]
    assert other != first
    assert texts(place) == {"0-0.txt": "b"}
    assert len(calls(place)) == 3


def test_what_is_there_to_be_joined_goes_when_it_is_and_comes_back_when_that_is_lost(place: Path) -> None:
    stage = {"name": "texts", "type": "data", "builder": "joining_builder", "shards": 2, "options": {}}
    file, folder = write_job(place, stage), place / "out" / "texts"
    assert build(file, 0)[0] == 0
    assert build(file, 1)[0] == -signal.SIGKILL
    assert not StageFolder(folder).is_done
    assert len(list((folder / "unjoined").iterdir())) == 2
    assert build(file, 0)[0] == 0
    assert (folder / "all.txt").read_text() == "text 0, text 1"
    assert not (folder / "unjoined").exists()
    # A message that comes late finds it done.
    assert build(file, 1)[0] == 0
    assert calls(place) == ["join", "join"]
    for joins, lost in ((3, "all.txt"), (4, "lasting-0.txt")):
        (folder / lost).unlink()
        assert build(file, 0)[0] == 0
        assert not StageFolder(folder).is_done
        assert build(file, 1)[0] == 0
        assert (folder / lost).exists()
        assert calls(place) == ["join"] * joins
    assert (folder / "all.txt").read_text() == "text 0, text 1"


@pytest.mark.parametrize(
    ("how", "shard", "code", "sentence"),
    [
        (
            {"builder": "nowhere"},
            0,
            42,
            "builder 'nowhere' cannot be imported: No module named 'nowhere'",
        ),
        ({"builder": "json"}, 0, 42, "builder 'json' has no function 'build' or 'build_shard'"),
        ({"builder": "whole_builder", "word": "a"}, 0, 42, "it cannot build 3 pieces, so shards must be 1"),
        ({"wrods": []}, 0, 42, "texts.options do not fit pieces_builder.build_shard: "),
        ({}, 3, 42, "texts has pieces 0 to 2, no piece 3"),
        ({"words": [], "trouble": "raises"}, 0, 1, "texts: OSError: the disk is full"),
    ],
)
def test_what_is_wrong_is_the_last_line(place: Path, how: dict[str, Any], shard: int, code: int, sentence: str) -> None:
    ended, out, errors = build(job(place, **how), shard)
    assert (ended, out) == (code, "")
    assert sentence in errors.splitlines()[-1]


def test_a_stage_that_is_no_data_stage_has_no_pieces(place: Path) -> None:
    ended, _, errors = build(write_job(place, {"name": "eval", "type": "eval"}), 0, "eval")
    assert (ended, errors) == (42, "eval: stage 'eval' is of type 'eval', only a stage of type data has pieces\n")


def test_pieces_that_make_the_same_file_are_refused(place: Path) -> None:
    file = job(place, words=["a", "b", "c"], trouble="same")
    assert build(file, 0)[0] == 0
    ended, _, errors = build(file, 1)
    assert ended == 42
    assert "pieces 0 and 1 both make texts/index.json: names must differ" in errors


def test_one_machine_builds_the_same_pieces_one_after_another(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(place / "modules"))
    said: list[str] = []
    build(job(place), 1)
    LocalRun(job(place), place / "out", said.append).run()
    assert [line.rpartition("(")[2] for line in said] == ["piece 1 of 3)", "piece 3 of 3)"]
    assert len(texts(place)) == 4
    assert StageFolder(place / "out" / "texts").is_done


def test_a_builder_of_the_whole_writes_into_the_folder_itself(place: Path) -> None:
    file = job(place, shards=1, builder="whole_builder", word="a")
    first = build(file, 0)
    assert first[0] == 0, first
    assert (place / "out" / "texts" / "kept" / "a").read_text() == "a"
    manifest = json.loads((place / "out" / "texts" / "shards" / "0.json").read_text())
    assert [one["path"] for one in manifest["files"]] == ["kept/a"]
    assert StageFolder(place / "out" / "texts").is_done
