"""The rows that are kept, and what is told of them, are the same whatever the number of pieces; and after any kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import builds
from tests.build_inputs import jpeg
from tests.filled_ledger import built, filled, stage
from tests.gate_rows import generated, translated
from training.build.bar import Bar
from training.build.candidates import Candidates, read_candidates
from training.build.thinning import settle
from training.data.shards import Dataset
from training.gates.duplicates import signed
from training.gates.tally import Tally
from training.pieces import UNJOINED, Pieces
from training.stage_folder import StageFolder
from ziya.leash import on_leash

pytestmark = pytest.mark.timeout(400)
ROWS = 60
WORDS = ("dog", "cat", "bird", "man", "child", "boat", "house", "tree", "road", "table", "chair", "horse", "lake")


def sentences(draw: random.Random) -> Iterator[str]:
    """Some are new, some an earlier one, some nearly one: chains too, whose ends are not alike."""
    said: list[str] = []
    while True:
        how = draw.random()
        words = draw.choice(said[-30:]).split() if said and how < 0.5 else ["a", *draw.choices(WORDS, k=25)]
        if how < 0.35:
            words[draw.randrange(1, len(words))] = draw.choice(WORDS)
        said.append(" ".join(words))
        yield said[-1]


def source(place: Path) -> Path:
    """One or several captions a row, questions with some of them, labels, licences, and one row of German."""
    draw = random.Random(5)
    texts = sentences(draw)
    place.mkdir()
    for number in range(3):
        (place / f"{number}.jpg").write_bytes(jpeg(number))
    with (place / "rows.jsonl").open("w") as file:
        for number in range(ROWS):
            row: dict[str, Any] = {"image": f"{number % 3}.jpg", "license": f"licence {number % 4}"}
            row["captions"] = [next(texts) for _ in range(draw.randint(1, 3))]
            row["labels"] = {"kind": f"kind {number}"}
            if number % 3 == 0:
                row |= {"vqa": [{"question": next(texts), "answer": "a dog"} for _ in range(2)]}
            if number % 5 == 0:
                row["captions"] = row["captions"][0]
            if number % 7 == 0:
                row["captions"] = [{"en": "a whole caption", "zh": "完整的说明"}, next(texts)]
            if 40 <= number < 44:
                row = {"image": "0.jpg", "license": "licence 9", "captions": "a red dog runs on a long white beach"}
            file.write(json.dumps(row) + "\n")
    return place / "rows.jsonl"


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("rows")
    return filled(place, source(place / "in"), generate=["question"], shardSamples=4)


@pytest.fixture(scope="module")
def one(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("one") / "out", options, 1)


def tally(output: Path) -> dict[str, Any]:
    whole = Tally()
    for path in sorted((output / "pieces").iterdir()):
        whole.merge(Tally.restore(json.loads(path.read_text())["tally"]))
    return whole.state()


def told(output: Path) -> dict[str, Any]:
    return {name: value for name, value in builds.manifest(output).items() if name != "dataset"}


@pytest.mark.parametrize("shards", [2, 3, 7, 15, ROWS])
def test_the_same_rows_are_kept_whatever_the_number_of_pieces(
    shards: int, options: dict[str, Any], one: Path, tmp_path: Path
) -> None:
    output = built(tmp_path / "out", options, shards)
    assert list(builds.records(output)) == list(builds.records(one))
    assert told(output) == told(one)
    assert tally(output) == tally(one)
    assert Dataset.open(str(output)).labels == Dataset.open(str(one)).labels
    for name in ("accepted/caption", "rejected/near duplicate"):
        assert tally(one)["samples"][name]
    assert not (output / "unjoined").exists()
    _agrees_with_itself(output)
    # Nothing of the pieces is left, and who comes late finds it done.
    files = builds.digests(output)
    assert Pieces(stage(options, shards), StageFolder(output)).missing() == []
    assert builds.digests(built(output, options, shards)) == files


def _agrees_with_itself(output: Path) -> None:
    index = json.loads((output / "index.json").read_text())
    named = {name for shard in index["shards"] for name in (shard["file"], shard["index"]["file"])}
    assert {path.name for path in output.glob("part-*")} == named
    dataset = Dataset.open(str(output))
    for number in range(len(dataset)):
        record = dataset.record(number)
        assert [dataset.image(number, image) for image in range(record.images)]
        made = {"caption", "vqa", "question"} & set(record.fields)
        assert set(record.fields["provenance"]["made"]) <= made
    pieces = [json.loads(path.read_text()) for path in sorted((output / "pieces").iterdir())]
    assert sum(piece["records"] for piece in pieces) == len(dataset)
    for piece in pieces:
        assert piece["records"] + piece["empty"] == piece["rows"][1] - piece["rows"][0]


def test_the_rows_are_such_that_all_of_it_can_happen(options: dict[str, Any], one: Path, tmp_path: Path) -> None:
    """An entry, a field, a record, a shard and a piece go; and looking within the pieces would not be enough."""
    rejected = builds.manifest(one)["made"]["rejects"]["near duplicate"]
    assert min(rejected["the same text"], rejected["a similar text"]) > 5
    whole = built(tmp_path / "all", {**options, "gates": {"backTranslation": 0, "nearDuplicates": False}}, 1)
    before, after = list(builds.records(whole)), list(builds.records(one))
    assert len(after) < len(before)
    lists = [sum(len(one["vqa"]) for one in some if "vqa" in one) for some in (before, after)]
    assert lists[0] > lists[1] > 0
    assert len([one for one in after if "vqa" in one]) < len([one for one in before if "vqa" in one])
    made = [piece["records"] for piece in _pieces(built(tmp_path / "many", options, ROWS))]
    assert 0 in made
    assert builds.manifest(one)["licences"]["licence 9"] == 1


def _pieces(output: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((output / "pieces").iterdir())]


@pytest.mark.parametrize("seed", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_join_that_is_killed_at_any_moment_ends_with_the_same_bytes(
    seed: int, options: dict[str, Any], tmp_path: Path
) -> None:
    shards = 5
    undisturbed = builds.digests(built(tmp_path / "calm" / "out", options, shards))
    pieces = Pieces(stage(options, shards), StageFolder(tmp_path / "unjoined" / "out"))
    for number in range(shards - 1):
        pieces.build(number)
    (tmp_path / "killed").mkdir()
    told = [json.dumps(options), str(shards), str(pieces.folder.path), str(tmp_path / "killed" / "out"), str(seed)]
    command = [*on_leash(signal.SIGKILL), sys.executable, "-m", "tests.killed_joins", *told]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=builds.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(end["digests"] == undisturbed for end in ends)
    lasting = ["done.json", "index.json", "manifest.json", "pieces", "report.html", "report.json", "shards"]
    assert all(end["left"] == lasting for end in ends)
    assert sum(end["kills"] for end in ends) > 10


def test_what_a_join_left_of_other_pieces_is_not_believed(options: dict[str, Any], tmp_path: Path) -> None:
    shards, other = 5, {**options, "generate": []}
    fresh = builds.digests(built(tmp_path / "fresh" / "out", options, shards))
    folder = StageFolder(tmp_path / "used" / "out")
    for number in range(shards - 1):
        Pieces(stage(other, shards), folder).build(number)
    # As far as it could be joined without the last piece, and not told that it is finished.
    with Bar("") as bar:
        settle(folder.path, folder.path / UNJOINED, shards - 1, bar)
    assert builds.digests(built(folder.path, options, shards)) == fresh


def test_a_file_of_the_finished_dataset_that_is_lost_is_made_again(options: dict[str, Any], tmp_path: Path) -> None:
    output = built(tmp_path / "out", options, 4)
    whole = builds.digests(output)
    for name in ("index.json", next(output.glob("part-00002-*.tar")).name):
        (output / name).unlink()
        assert Pieces(stage(options, 4), StageFolder(output)).missing() == [0, 1, 2, 3]
        assert builds.digests(built(output, options, 4)) == whole


def test_what_a_piece_leaves_of_an_entry_is_read_back_as_it_was(tmp_path: Path) -> None:
    rows = [
        translated("What?|A \ud83d cat.", "什么？|一只猫。", task="vqa", image=lambda: b"picture"),
        generated("Describe.|A cat.", "描述。|一只猫。", context="captions:\n- a cat"),
    ]
    with Candidates(tmp_path) as candidates:
        for number, row in enumerate(rows):
            candidates.add(3 + number, row.task, number, row)
    for (found, texts), number in zip(read_candidates(tmp_path), range(2), strict=True):
        row = rows[number]
        assert (found.record, found.field, found.place) == (3 + number, row.task, number)
        assert found.has_image == (row.image is not None)
        assert found.digest == row.digest == found.read().digest
        assert found.read().texts == row.texts
        assert found.read().language == row.language
        for (own, bands), (mine, my_bands) in zip(texts, signed(row), strict=True):
            assert own.tolist() == mine.tolist()
            assert bands.tolist() == my_bands.tolist()


def test_what_the_source_calls_as_what_is_generated_gives_way_to_it(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    row = {"image": "0.jpg", "caption": "a red dog runs on the beach", "description": "Words of the source."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    told = filled(tmp_path, tmp_path / "rows.jsonl", generate=["description"])
    (record,) = builds.records(built(tmp_path / "out", told, 1))
    assert [one["answer"]["en"] for one in record["description"]] == ["One can see a red dog runs on the beach."]
