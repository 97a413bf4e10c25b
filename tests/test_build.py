"""`ziya data build` as a person runs it, against a language model's server on a real socket."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import builds
from tests.build_inputs import CAPTIONS, LAYOUTS, LICENCE, QUESTIONS, jpeg, lines
from tests.build_rules import chinese
from tests.llm_process import LlmProcess
from tests.llm_server import Troubles
from training.data.record import Record
from training.data.shards import Dataset
from training.data.tasks import conversation
from training.recipe import Source

pytestmark = pytest.mark.timeout(300)
GIVEN = ("--licence", "CC0-1.0")
FREE = ("--back-translation", "0")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlmProcess]:
    with LlmProcess(tmp_path_factory.mktemp("llm") / "paid.jsonl", None, *builds.SERVER) as server:
        yield server


def asked(server: LlmProcess) -> int:
    return int(server.counts()["requests"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_becomes_bilingual_data_that_the_trainer_reads(
    name: str, server: LlmProcess, tmp_path: Path
) -> None:
    source = LAYOUTS[name](tmp_path / "in")
    builds.build(source, tmp_path / "out", server.url, *GIVEN, "--generate", "question")
    found = list(builds.records(tmp_path / "out"))
    assert len(found) == 3
    field, texts = _translated(name)
    for fields, english in zip(found, texts, strict=True):
        said = json.dumps(fields[field], ensure_ascii=False)
        for text in english:
            assert json.dumps(text) in said
            assert chinese(text) in said
        about = fields["provenance"]
        assert about["licence"] == _licence(name)
        assert about["made"][field]["step"] == "translate"
    _read_by_the_trainer(tmp_path / "out", field, "question" if name not in ("llava",) else None)
    told = builds.manifest(tmp_path / "out")
    assert (told["rows"], told["records"], told["licences"]) == (3, 3, {_licence(name): 3})
    assert told["made"]["accepted"] >= 3
    report = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert chinese(texts[0][0]) in report


def _translated(name: str) -> tuple[str, list[tuple[str, ...]]]:
    if name in ("parquet", "vqa"):
        return "vqa", [*QUESTIONS]
    return ("dialogue", [*QUESTIONS]) if name == "llava" else ("caption", [(caption,) for caption in CAPTIONS])


def _licence(name: str) -> str:
    if name == "coco":
        return "Attribution License http://creativecommons.org/licenses/by/2.0/"
    return LICENCE if name in ("json", "tar") else "CC0-1.0"


def _read_by_the_trainer(output: Path, field: str, generated: str | None) -> None:
    dataset = Dataset.open(str(output))
    for number in range(len(dataset)):
        record: Record = dataset.record(number)
        assert [dataset.image(number, 0)] == [jpeg(number)]
        for language in ("en", "zh"):
            sources = [Source(str(output), field, language)]
            if generated in record.fields:
                sources.append(Source(str(output), "vqa", language, field=generated))
            for source in sources:
                turns = conversation(record, source, dataset.templates, random.Random(0)).turns
                assert all(turn.text for turn in turns)


def test_instructions_are_generated_in_both_languages_with_demonstrations(server: LlmProcess, tmp_path: Path) -> None:
    source = LAYOUTS["coco"](tmp_path / "in")
    options = ("--generate", "all", "--keep-near-duplicates", "--no-translate", *FREE)
    builds.build(source, tmp_path / "out", server.url, *options)
    for fields, caption in zip(builds.records(tmp_path / "out"), CAPTIONS, strict=True):
        for field in ("description", "question", "reasoning"):
            assert fields[field][0]["answer"]["en"] == f"One can see {caption}."
            assert fields[field][0]["answer"]["zh"] == chinese(f"One can see {caption}.")
        turns = fields["conversation"][0]["turns"]
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
        # What nobody asked to translate stays, and says which language it is in.
        assert fields["caption"] == [{"en": caption}, {"en": caption}]


def test_the_dry_run_asks_nothing_and_says_what_is_then_asked(server: LlmProcess, tmp_path: Path) -> None:
    source = lines(tmp_path / "in", 20, lambda number: f"a dog at house number {number}")
    prices = ("--prompt-price", "2", "--answer-price", "8", "--generate", "question", *FREE)
    before = asked(server)
    said = builds.build(source, tmp_path / "out", server.url, *prices, "--dry-run")
    assert asked(server) == before
    assert "20 rows, 0 that cannot be used" in said
    assert "40 requests to make, 0 answered before" in said
    assert not (tmp_path / "out").exists()
    builds.build(source, tmp_path / "out", server.url, *prices)
    assert asked(server) == before + 40
    again = builds.build(source, tmp_path / "out", server.url, *prices, "--dry-run")
    assert "0 requests to make, 40 answered before" in again


def test_without_prices_nothing_is_said_of_dollars(server: LlmProcess, tmp_path: Path) -> None:
    """Least of all that it costs none."""
    source = lines(tmp_path / "in", 3)
    planned = builds.build(source, tmp_path / "out", server.url, "--dry-run")
    assert "--prompt-price" in planned
    assert "$" not in planned + builds.build(source, tmp_path / "out", server.url)


def test_the_dry_run_guesses_what_will_be_translated_back_and_knows_it_afterwards(
    server: LlmProcess, tmp_path: Path
) -> None:
    source = lines(tmp_path / "in", 200, lambda number: f"a dog at house number {number}")
    how = ("--back-translation", "0.3", "--keep-near-duplicates")
    said = builds.build(source, tmp_path / "out", server.url, *how, "--dry-run")
    assert "200 requests to make, 0 answered before" in said
    assert "and about 60 to translate a sample back" in said
    before = asked(server)
    builds.build(source, tmp_path / "out", server.url, *how)
    back = asked(server) - before - 200
    assert 40 < back < 80
    again = builds.build(source, tmp_path / "out", server.url, *how, "--dry-run")
    assert f"0 requests to make, {200 + back} answered before" in again
    assert "translate a sample back" not in again


def test_answers_that_are_no_use_are_counted_and_weather_changes_nothing(tmp_path: Path) -> None:
    source = lines(tmp_path / "in", 60, lambda number: f"a dog at house number {number}")
    bad = {"refuse": 9, "truncate": 11, "filter": 13, "empty": 17, "bad_request": 19, "broken": 4, "misfit": 6}
    storm = {"rate_limit": 7, "error": 5, "close": 8, "cut": 9}
    for name, weather in (("calm", {}), ("storm", storm)):
        with LlmProcess(tmp_path / f"{name}.jsonl", Troubles(**bad, **weather), *builds.SERVER) as server:
            builds.build(source, tmp_path / name / "out", server.url, "--concurrency", "4")
    lost = builds.manifest(tmp_path / "calm" / "out")["made"]["rejects"]["answer"]
    # Broken and misfitting JSON is asked for again, and is well then.
    assert set(lost) == {"refused", "truncated", "filtered", "empty", "bad request"}
    report = json.loads((tmp_path / "calm" / "out" / "report.json").read_text())
    samples = [entry for _, entry in report["tally"]["samples"]["rejected/answer"]]
    # What was said all the same is there to be looked at.
    assert any('{"texts"' in sample["detail"] for sample in samples if sample["kind"] == "truncated")
    told = builds.manifest(tmp_path / "calm" / "out")
    assert told["records"] + told["empty"] == 60
    assert told["made"]["rows"] == 60
    assert builds.digests(tmp_path / "calm" / "out") == builds.digests(tmp_path / "storm" / "out")


def test_a_budget_is_never_exceeded_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    source = lines(tmp_path / "in", 40, lambda number: f"a dog at house number {number}")
    prices = ("--prompt-price", "100", "--answer-price", "100", "--concurrency", "2", *FREE)
    with LlmProcess(tmp_path / "paid.jsonl", None, *builds.SERVER) as server:
        code, said = builds.refused(source, tmp_path / "out", server.url, *prices, "--budget", "0.5")
        assert code == 42
        assert "of the budget of $0.5000" in said
        assert "a larger --budget goes on from there" in said
        first = len(server.counts()["paid"])
        assert 0 < first < 40
        out = builds.build(source, tmp_path / "out", server.url, *prices, "--budget", "50")
        paid = server.counts()["paid"]
    assert (len(paid), set(paid.values())) == (40, {1})
    assert "40 requests paid in all" in out


def test_a_server_that_dies_and_comes_back_is_waited_for(tmp_path: Path) -> None:
    source = lines(tmp_path / "in", 40, lambda number: f"a dog at house number {number}")
    how = ("--concurrency", "4", "--keep-near-duplicates", *FREE)
    with LlmProcess(tmp_path / "paid.jsonl", Troubles(die_after=15), *builds.SERVER) as server:
        process = builds.start(source, tmp_path / "out", server.url, *how)
        while not server.is_dead:
            time.sleep(0.05)
    again = LlmProcess(tmp_path / "paid.jsonl", None, *builds.SERVER)
    again.port = server.port
    with again:
        _, errors = builds.ended(process)
        paid = again.counts()["paid"]
    assert process.returncode == 0, errors
    assert (len(paid), set(paid.values())) == (40, {1})
    assert len(list(builds.records(tmp_path / "out"))) == 40


def test_rows_that_cannot_be_used_stop_the_build_before_they_cost_anything(server: LlmProcess, tmp_path: Path) -> None:
    source = lines(tmp_path / "in", 200, lambda number: "" if number % 10 == 3 else f"a dog at house {number}")
    before = asked(server)
    code, said = builds.refused(source, tmp_path / "out", server.url, *FREE, "--concurrency", "1")
    assert code == 42
    assert "20 × empty text (rows.jsonl:4: empty text: caption)" in said
    assert asked(server) - before < 200
    out = builds.build(source, tmp_path / "out", server.url, *FREE, "--bad-share", "0.2", "--keep-near-duplicates")
    assert "180 records of 200 rows" in out
    assert builds.manifest(tmp_path / "out")["bad"]["kinds"] == {"empty text": 20}


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        ((), 42, "its rows do not say under which licence they may be used"),
        ((*GIVEN, "--budget", "1"), 42, "a budget needs prices"),
        ((*GIVEN, "--api-key-env", "NO_SUCH_KEY"), 42, "the environment variable NO_SUCH_KEY"),
        ((*GIVEN, "--no-translate"), 42, "there is nothing to make"),
        ((*GIVEN, "--layout", "coco"), 42, "has no captions_*.json"),
        ((*GIVEN, "--options", "{place}/wrong.yaml"), 42, "there is no such field; did you mean concurrency?"),
        ((*GIVEN, "--demonstrations", "{place}/wrong.yaml"), 42, "is no file of demonstrations"),
    ],
)
def test_what_is_wrong_is_one_plain_sentence(
    options: tuple[str, ...], code: int, sentence: str, server: LlmProcess, tmp_path: Path
) -> None:
    (tmp_path / "wrong.yaml").write_text("concurency: 3\n")
    source = LAYOUTS["folder"](tmp_path / "in")
    given = [option.format(place=tmp_path) for option in options]
    assert builds.refused(source, tmp_path / "out", server.url, *given)[0] == code
    assert sentence in builds.refused(source, tmp_path / "out", server.url, *given)[1]


def test_a_flag_goes_before_the_file_under_whichever_name_that_has_it(server: LlmProcess, tmp_path: Path) -> None:
    source = lines(tmp_path / "in", 20, lambda number: f"a dog at house number {number}")
    (tmp_path / "options.yaml").write_text("shardSamples: 3\ngates: {backTranslation: 1.0, nearDuplicates: false}\n")
    how = ("--options", str(tmp_path / "options.yaml"), "--back-translation", "0", "--shard-samples", "7")
    builds.build(source, tmp_path / "out", server.url, *how)
    said = builds.manifest(tmp_path / "out")["options"]
    assert said["shard_samples"] == 7
    assert (said["gates"]["back_translation"], said["gates"]["near_duplicates"]) == (0, False)


def test_a_folder_of_something_else_is_not_filled(server: LlmProcess, tmp_path: Path) -> None:
    source = LAYOUTS["folder"](tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    code, said = builds.refused(source, tmp_path / "out", server.url, *GIVEN)
    assert code == 2
    assert "is no dataset: choose another folder" in said


def test_an_input_that_changed_is_built_anew_and_the_key_is_nowhere(server: LlmProcess, tmp_path: Path) -> None:
    source = lines(tmp_path / "in", 4)
    builds.build(source, tmp_path / "out", server.url, *FREE)
    first = builds.digests(tmp_path / "out")
    builds.build(source, tmp_path / "out", server.url, *FREE)
    assert builds.digests(tmp_path / "out") == first
    source.write_text(source.read_text().replace("a red dog", "a blue dog"))
    builds.build(source, tmp_path / "out", server.url, *FREE)
    assert "a blue dog runs on the beach" in [fields["caption"]["en"] for fields in builds.records(tmp_path / "out")]


def test_the_key_comes_from_the_environment_and_stands_nowhere(
    server: LlmProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    source = lines(tmp_path / "in", 4)
    builds.build(source, tmp_path / "out", server.url, *FREE, "--api-key-env", "MY_KEY")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not [path for path in files if b"sk-very-secret" in path.read_bytes()]
