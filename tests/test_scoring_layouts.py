"""Readers of benchmark data, each on a tiny fixture in the layout that its owners publish."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from training.data.writer import write_dataset
from training.errors import BadConfig, BadData, BadSample
from training.scoring.item import Item
from training.scoring.layouts import Source, found_layout
from training.scoring.tasks import TASKS, Asking

BOTH = ("en", "zh")


def picture(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), "utf-8")
    return path


def show(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture())
    return folder


def read(source: Source, task: str = "caption", languages: Sequence[str] = BOTH, **how: Any) -> list[Item]:
    """All items, of which none may be bad."""
    every = list(source.items(Asking(TASKS[task], **how), languages))
    assert not [one for one in every if isinstance(one, BadSample)]
    return [one for one in every if isinstance(one, Item)]


COCO = {
    "images": [
        {"id": 42, "file_name": "COCO_val2014_000000000042.jpg", "width": 8, "height": 8},
        {"id": 73, "file_name": "COCO_val2014_000000000073.jpg", "width": 8, "height": 8},
    ],
    "annotations": [
        {"image_id": 73, "id": 1, "caption": "a motorcycle\nparked"},
        {"image_id": 42, "id": 2, "caption": "A red towel."},
        {"image_id": 42, "id": 3, "caption": "shoes on a rack"},
    ],
}


def test_coco_captions(tmp_path: Path) -> None:
    images = show(tmp_path / "val2014", "COCO_val2014_000000000042.jpg")
    source = Source(put(tmp_path / "captions_val2014.json", COCO), images=images)
    assert found_layout(source.path) == "coco"
    first, second = read(source)
    assert (first.key, first.truths) == ("COCO_val2014_000000000042.jpg", ("A red towel.", "shoes on a rack"))
    assert second.truths == ("a motorcycle parked",)
    assert (first.language, first.question) == ("en", "Describe this picture briefly.")
    assert first.pictures[0]() == picture()
    with pytest.raises(BadSample, match="missing image"):
        second.pictures[0]()
    assert read(Source(source.path, "zh"))[0].question == "简单描述一下这张图片。"


def test_a_picture_without_captions_is_named(tmp_path: Path) -> None:
    lacking = {**COCO, "annotations": COCO["annotations"][:1]}
    every = list(Source(put(tmp_path / "c.json", lacking)).items(Asking(TASKS["caption"]), BOTH))
    assert [str(one) for one in every if isinstance(one, BadSample)] == [
        "COCO_val2014_000000000042.jpg: missing text: the picture has no caption"
    ]


def test_nocaps_has_domains(tmp_path: Path) -> None:
    nocaps = {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "domain": kind} for n, kind in ((0, "in-domain"), (1, "out-domain"))
        ],
        "annotations": [{"image_id": n, "id": n, "caption": f"caption {n}"} for n in (0, 1)],
    }
    items = read(Source(put(tmp_path / "nocaps_val_4500_captions.json", nocaps), layout="nocaps"))
    assert [item.kind for item in items] == ["in-domain", "out-domain"]


def test_karpathys_split_of_coco_and_flickr(tmp_path: Path) -> None:
    def entry(name: str, split: str, *said: str, **more: Any) -> dict[str, Any]:
        sentences = [{"raw": text, "tokens": text.split(), "imgid": 0} for text in said]
        return {"filename": name, "split": split, "sentences": sentences, "imgid": 0, **more}

    coco = {
        "dataset": "coco",
        "images": [
            entry("a.jpg", "test", "A man.", "A person.", filepath="val2014", cocoid=1),
            entry("b.jpg", "restval", "A dog.", filepath="val2014", cocoid=2),
            entry("c.jpg", "train", "A cat.", filepath="train2014", cocoid=3),
        ],
    }
    source = Source(put(tmp_path / "dataset_coco.json", coco), images=show(tmp_path, "val2014/a.jpg"))
    assert found_layout(source.path) == "karpathy"
    (only,) = read(source)
    assert (only.key, only.truths, only.pictures[0]()) == ("a.jpg", ("A man.", "A person."), picture())
    assert [item.key for item in read(Source(source.path, split="train"))] == ["b.jpg", "c.jpg"]
    with pytest.raises(BadData, match="no split 'dev', only restval, test, train"):
        read(Source(source.path, split="dev"))
    flickr = {"dataset": "flickr30k", "images": [entry("1.jpg", "test", "Two men .", sentids=[0])]}
    (one,) = read(Source(put(tmp_path / "dataset_flickr30k.json", flickr), images=show(tmp_path, "1.jpg")))
    assert one.pictures[0]() == picture()


def test_flickrs_token_file_and_a_list_of_names(tmp_path: Path) -> None:
    lines = "1.jpg#0\tTwo young guys .\n1.jpg#1\tMen in a yard .\n22.jpg#0\tA dog , running .\n"
    source = Source(put(tmp_path / "results_20130124.token", lines), images=show(tmp_path, "1.jpg", "22.jpg"))
    assert found_layout(source.path) == "flickr"
    first, second = read(source)
    assert (first.key, first.truths) == ("1.jpg", ("Two young guys .", "Men in a yard ."))
    assert (second.key, second.pictures[0]()) == ("22.jpg", picture())
    names = put(tmp_path / "test.txt", "22\n")
    assert [item.key for item in read(Source(source.path, split=str(names)))] == ["22.jpg"]
    with pytest.raises(BadData, match="line 2 is not"):
        read(Source(put(tmp_path / "broken.token", "1.jpg#0\ta\nno caption\n")))


def test_chinese_captions_in_the_same_layouts(tmp_path: Path) -> None:
    lines = "1.jpg#zhb#0 两个年轻人在院子里。\n1.jpg#zhb#1 两名男子 站着\n"
    (item,) = read(Source(put(tmp_path / "flickr30k-cn.txt", lines), "zh"))
    assert (item.key, item.language) == ("1.jpg", "zh")
    assert item.truths == ("两个年轻人在院子里。", "两名男子 站着")


def test_flickrs_csv_files(tmp_path: Path) -> None:
    kaggle = 'image_name| comment_number| comment\n1.jpg| 0| A man says "hi" , twice .\n1.jpg| 1| A man .\n'
    (one,) = read(Source(put(tmp_path / "results.csv", kaggle)))
    assert one.truths == ('A man says "hi" , twice .', "A man .")
    eight = 'image,caption\n2.jpg,"A dog, wet ."\n'
    (two,) = read(Source(put(tmp_path / "captions.txt", eight)))
    assert two.truths == ("A dog, wet .",)
    head, rows = (
        "raw,sentids,split,filename,img_id",
        ('"[""A cat."", ""A pet.""]","[0, 1]",test,3.jpg,0', "[],[],train,4.jpg,1"),
    )
    thirty = "\n".join([head, *rows])
    (three,) = read(Source(put(tmp_path / "flickr_annotations_30k.csv", thirty)))
    assert (three.key, three.truths) == ("3.jpg", ("A cat.", "A pet."))


def test_vqa_and_its_answers_beside_it(tmp_path: Path) -> None:
    questions = {
        "data_subtype": "val2014",
        "questions": [{"image_id": 42, "question": "What color is it?", "question_id": 42000}],
    }
    answers = [
        {"answer": text, "answer_id": n, "answer_confidence": "yes"} for n, text in enumerate(["red"] * 9 + ["pink"])
    ]
    annotations = {"annotations": [{"question_id": 42000, "image_id": 42, "answer_type": "other", "answers": answers}]}
    path = put(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", questions)
    images = show(tmp_path / "val2014", "COCO_val2014_000000000042.jpg")
    with pytest.raises(BadConfig, match="no answers to v2_OpenEnded"):
        read(Source(path), "vqa")
    put(tmp_path / "v2_mscoco_val2014_annotations.json", annotations)
    assert found_layout(path) == "vqa"
    (item,) = read(Source(path, images=images), "vqa")
    assert (item.key, item.kind, len(item.truths), item.pictures[0]()) == ("42000", "other", 10, picture())
    assert item.question == "What color is it? Short answer:"
    # OK-VQA names its files otherwise, and pictures of 2017 are called by their number alone.
    okvqa = put(tmp_path / "ok" / "OpenEnded_mscoco_val2014_questions.json", questions)
    named = put(tmp_path / "ok" / "answers.json", annotations)
    (other,) = read(Source(okvqa, images=show(tmp_path / "val2017", "000000000042.jpg"), annotations=named), "okvqa")
    assert other.pictures[0]() == picture()


def test_gqa(tmp_path: Path) -> None:
    questions = {
        "201307251": {
            "imageId": "n161313",
            "question": "Is it overcast?",
            "answer": "no",
            "types": {"structural": "verify"},
        },
        "201640614": {"imageId": "n235859", "question": "Who wears the dress?", "answer": "woman", "isBalanced": True},
    }
    path = put(tmp_path / "testdev_balanced_questions.json", questions)
    assert found_layout(path) == "gqa"
    first, second = read(Source(path, images=show(tmp_path / "images", "n161313.jpg")), "gqa")
    assert (first.key, first.truths, first.kind, first.pictures[0]()) == ("201307251", ("no",), "verify", picture())
    assert (second.truths, second.kind) == (("woman",), "")


def test_scienceqa(tmp_path: Path) -> None:
    problem = {
        "question": "Which is it?",
        "choices": ["a rock", "a plant"],
        "answer": 1,
        "hint": "Look.",
        "split": "test",
    }
    problems = {
        "5": {**problem, "image": "image.png"},
        "6": {**problem, "image": None, "hint": ""},
        "7": {**problem, "split": "val"},
    }
    path = put(tmp_path / "problems.json", problems)
    assert found_layout(path) == "scienceqa"
    first, second = read(Source(path, images=show(tmp_path / "images", "test/5/image.png")), "choice")
    assert first.question == "Look. Which is it? Options: (a) a rock (b) a plant"
    assert (first.options, first.right, first.pictures[0]()) == (("a rock", "a plant"), 1, picture())
    assert (second.kind, second.pictures) == ("without a picture", ())


RECORD = {
    "id": "lemon",
    "caption": {"en": ["a lemon", "a fruit"], "zh": "柠檬"},
    "label": {"en": "Food", "zh": "食物"},
    "group": "fruit",
    "vqa": [
        {"question": {"en": "Colour?", "zh": "颜色？"}, "answer": [{"en": "yellow", "zh": "黄色"}] * 4},
        {"question": {"en": "Sweet?"}, "answer": {"en": ["no", "not at all"]}},
    ],
    "choice": {"question": {"en": "What?"}, "options": {"en": ["lemon", "lime"]}, "answer": 0},
}


@pytest.fixture(params=["dataset", "jsonl", "one line"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    """One record of ours in each form."""
    if request.param == "dataset":
        write_dataset(tmp_path / "set", [(RECORD, [picture()])], name="set", templates={"own": {"en": ["What is it?"]}})
        return Source(tmp_path / "set")
    show(tmp_path, "lemon.png")
    line = json.dumps({**RECORD, "image": "lemon.png"}, ensure_ascii=False)
    suffix = ".jsonl" if request.param == "jsonl" else ".txt"
    return Source(put(tmp_path / f"records{suffix}", line + "\n"))


def test_our_own_records_in_both_languages(own: Source) -> None:
    english, chinese = read(own)
    assert (english.key, english.language, english.truths) == ("lemon", "en", ("a lemon", "a fruit"))
    assert (chinese.key, chinese.language, chinese.truths) == ("lemon", "zh", ("柠檬",))
    assert english.pictures[0]() == picture()
    assert [item.truths for item in read(own, "exact")] == [("Food",), ("食物",)]
    (only,) = read(own, "retrieval", ["zh"])
    assert (only.group, only.truths, only.question) == ("fruit", ("柠檬",), "")


def test_each_question_of_our_own_records_is_an_item(own: Source) -> None:
    items = read(own, "vqa")
    assert [(item.key, item.language) for item in items] == [("lemon#0", "en"), ("lemon#1", "en"), ("lemon#0", "zh")]
    assert items[0].truths == ("yellow",) * 4
    assert items[1].truths == ("no", "not at all")
    assert items[2].question == "颜色？简短回答："
    (choice,) = read(own, "choice")
    assert (choice.options, choice.right, choice.truths) == (("lemon", "lime"), 0, ("lemon",))


def test_a_dataset_brings_its_wordings(tmp_path: Path) -> None:
    write_dataset(tmp_path, [(RECORD, [picture()])], name="set", templates={"own": {"en": ["What is it?"]}})
    assert read(Source(tmp_path), "exact", ["en"], templates="own")[0].question == "What is it?"


def test_what_is_in_no_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="is not there"):
        found_layout(tmp_path / "nothing.json")
    with pytest.raises(BadData, match="in no known layout"):
        found_layout(put(tmp_path / "a.json", {"x": {"y": 1}}))
    with pytest.raises(BadData, match="not COCO captions"):
        read(Source(put(tmp_path / "b.json", {"images": [{}], "annotations": []})))
    with pytest.raises(BadData, match="not a file of Flickr captions"):
        read(Source(put(tmp_path / "c.txt", "one,two\n3,4\n")))
    missing = list(Source(put(tmp_path / "d.jsonl", '{"caption": "x"}\n')).items(Asking(TASKS["exact"]), BOTH))
    assert str(missing[0]).endswith("missing field: label")
