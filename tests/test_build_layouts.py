"""What a builder reads: every layout as it is, recognised by what it is, and everything that is wrong named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.build_inputs import (
    CAPTIONS,
    LAYOUTS,
    LICENCE,
    QUESTIONS,
    coco,
    folder,
    jpeg,
    lines,
    llava,
    parquet,
    tars,
    vqa,
)
from training.build.layouts.json_elements import JsonFile
from training.build.layouts.layout import Layout, SourceRow
from training.build.layouts.recognise import open_layout, recognised
from training.errors import BadData, BadSample


def rows(layout: Layout) -> list[SourceRow]:
    return [layout.read(number) for number in range(layout.count)]


def reason(layout: Layout, number: int) -> str:
    with pytest.raises(BadSample) as caught:
        layout.read(number)
    return str(caught.value)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_pictures_in_order_and_again(name: str, tmp_path: Path) -> None:
    layout = open_layout(str(LAYOUTS[name](tmp_path / "in")), "en")
    assert layout.kind == {"llava": "json"}.get(name, name)
    found = rows(layout)
    assert [list(row.images) for row in found] == [[jpeg(number)] for number in range(3)]
    assert [row.fields for row in reversed([layout.read(n) for n in (2, 1, 0)])] == [row.fields for row in found]
    assert len({(row.source, row.place) for row in found}) == 3
    assert (
        layout.digest
        == open_layout(str(tmp_path / "in" if name not in ("json", "llava") else _file(tmp_path)), "en").digest
    )


def _file(place: Path) -> Path:
    llava_file = place / "in" / "llava.json"
    return llava_file if llava_file.exists() else place / "in" / "rows.jsonl"


@pytest.mark.parametrize("make", [folder, lines, tars])
def test_captions_and_licences_come_along(make: Callable[[Path], Path], tmp_path: Path) -> None:
    found = rows(open_layout(str(make(tmp_path / "in")), "en"))
    said = [row.fields["caption"] for row in found]
    assert [one["en"] if isinstance(one, dict) else one for one in said] == list(CAPTIONS)
    assert {row.licence for row in found} == ({None} if make is folder else {LICENCE})


def test_coco_gives_captions_boxes_in_fractions_and_the_licence_of_each_picture(tmp_path: Path) -> None:
    layout = open_layout(str(coco(tmp_path / "in")), "en")
    assert [one["file"] for one in layout.inputs] == ["captions_train2017.json", "instances_train2017.json"]
    for row, caption in zip(rows(layout), CAPTIONS, strict=True):
        assert row.fields["caption"] == [caption, caption]
        assert row.fields["boxes"] == [{"label": "dog", "box": [0.25, 0.25, 0.75, 0.75]}]
        assert row.licence == "Attribution License http://creativecommons.org/licenses/by/2.0/"


@pytest.mark.parametrize("make", [vqa, parquet])
def test_the_answer_of_a_question_is_what_most_people_gave(make: Callable[[Path], Path], tmp_path: Path) -> None:
    found = rows(open_layout(str(make(tmp_path / "in")), "en"))
    said = [row.fields["vqa"] if make is parquet else row.fields["vqa"][0] for row in found]
    assert [(one["question"], one["answer"]) for one in said] == list(QUESTIONS)


def test_dialogues_know_their_pictures(tmp_path: Path) -> None:
    first = rows(open_layout(str(llava(tmp_path / "in")), "en"))[0].fields["dialogue"]["turns"]
    assert first[0] == {"role": "user", "text": {"en": QUESTIONS[0][0]}, "images": [0]}
    assert first[1] == {"role": "assistant", "text": {"en": QUESTIONS[0][1]}}


def test_a_flag_overrides_what_is_seen(tmp_path: Path) -> None:
    place = coco(tmp_path / "in")
    assert recognised(str(place)) == "coco"
    layout = open_layout(str(place), "en", kind="folder")
    # The annotations are texts without a picture there, and the pictures have no text.
    assert (layout.kind, layout.count) == ("folder", 5)
    assert "missing text" in reason(layout, 0)
    assert "there is no picture of the same name" in reason(layout, 4)


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    file = lines(tmp_path / "in")
    good = json.loads(file.read_text().splitlines()[0])
    (tmp_path / "in" / "cut.jpg").write_bytes(jpeg(0)[:40])
    bad: list[Any] = ["{", 5, {**good, "image": "no.jpg"}, {**good, "image": "cut.jpg"}, {**good, "text": " "}]
    said = [one if isinstance(one, str) else json.dumps(one) for one in [good, *bad, good]]
    file.write_text("\n\n".join(said))
    layout = open_layout(str(file), "en")
    assert layout.count == 7
    kinds = [reason(layout, number).split(": ")[:2] for number in range(1, 6)]
    assert [key for key, _ in kinds] == [f"rows.jsonl:{number}" for number in (3, 5, 7, 9, 11)]
    expected = ["wrong JSON", "wrong JSON", "missing image", "wrong image", "empty text"]
    assert [kind for _, kind in kinds] == expected
    assert layout.read(6).place == 13


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": "}]\\"{", "b": [1, {"c": []}]}, {"d": 1}]',
        "[ ]",
        '[1, "two, [3]", {"x": 1}, null,\n 4.5]',
        '{"images": [{"id": 1}], "info": {"images": [9]}, "n": 3, "annotations": [{"a": [1]}, {"b": {}}]}',
    ],
)
def test_elements_are_found_without_parsing_the_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    whole = json.loads(text)
    lists = {"": whole} if isinstance(whole, list) else {k: v for k, v in whole.items() if isinstance(v, list)}
    file = JsonFile(path)
    assert set(file.lists) == set(lists)
    for name, expected in lists.items():
        assert list(file.objects(name)) == expected


@pytest.mark.parametrize("text", ['[{"a": 1}, {"b"', '{"images": [{"a": 1}', "hello", "[1, 2"])
def test_a_file_that_is_cut_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(BadData):
        JsonFile(path)


def test_nothing_to_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("# notes")
    for place, said in (("empty", "has no rows"), ("no", "cannot be read"), ("notes.md", "none of the layouts")):
        with pytest.raises(BadData, match=said):
            open_layout(str(tmp_path / place), "en")


def test_a_question_without_an_answer_is_left_out_and_told(tmp_path: Path) -> None:
    place = vqa(tmp_path / "in")
    file = place / "v2_OpenEnded_mscoco_train2014_questions.json"
    asked = json.loads(file.read_text())
    asked["questions"].append({"image_id": 0, "question_id": 999, "question": "who asks"})
    file.write_text(json.dumps(asked))
    first = open_layout(str(place), "en").read(0)
    assert (len(first.fields["vqa"]), first.lacking) == (1, ("missing answer: question 999",))
