"""What docs/results.md is measured on: the packages' own layouts become datasets, and what no model scores."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from benchmarks import results_data
from benchmarks.results import baselines
from benchmarks.shape_questions import chinese
from cli.eval.run import Found
from tests.test_scoring_layouts import picture
from training.data.shards import Dataset
from training.scoring.evaluation import Result
from training.scoring.item import Item
from training.scoring.result import Scores
from training.scoring.store import Said
from training.scoring.tasks import TASKS


def stamp(folder: Path, name: str, text: str) -> None:
    path = folder / "usr" / "share" / "tuxpaint" / "stamps" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture())
    path.with_suffix(".txt").write_text(text, "utf-8")


@pytest.mark.skipif(results_data.INSTALLED.is_dir(), reason="the package itself is installed, and is taken then")
def test_stamps_with_a_sentence_in_both_languages(tmp_path: Path) -> None:
    debian = tmp_path / "debian"
    stamp(
        debian,
        "animals/capybara.png",
        "A sleeping capybara.\nde.utf8=Ein Wasserschwein.\nzh_CN.utf8=一只睡觉的水豚。\n",
    )
    stamp(debian, "animals/dog.png", "A dog.\nzh_TW.utf8=一隻狗。\n")
    stamp(debian, "symbols/a.png", "A.\nzh_CN.utf8=一。\n")
    (only,) = [Dataset.open(str(results_data.stamps(tmp_path))).record(0)]
    assert only.fields["caption"] == {"en": "A sleeping capybara.", "zh": "一只睡觉的水豚。"}
    assert only.fields["id"] == "animals/capybara.png"
    assert len(Dataset.open(str(tmp_path / "stamps"))) == 1


def test_shapes_have_one_answer_ten_times(tmp_path: Path) -> None:
    (tmp_path / "easy-vqa").mkdir()
    with zipfile.ZipFile(tmp_path / "easy-vqa" / "easy_vqa-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("easy_vqa/data/test/questions.json", json.dumps([["what is the red shape?", "circle", 3]]))
        wheel.writestr("easy_vqa/data/test/images/3.png", picture())
    dataset = Dataset.open(str(results_data.shapes(tmp_path)))
    assert dataset.record(0).fields["vqa"]["answer"] == [{"en": "circle", "zh": "圆形"}] * 10
    assert dataset.image(0, 0) == picture()


@pytest.mark.parametrize(
    ("question", "answer", "asked", "said"),
    [
        ("what is the color of the triangle?", "red", "三角形是什么颜色？", {"红色"}),
        ("what color is the shape?", "teal", "图形是什么颜色？", {"青色"}),
        ("what is the blue shape?", "rectangle", "蓝色的图形是什么形状？", {"矩形", "长方形"}),
        ("what shape does the image contain?", "circle", "图中是什么形状？", {"圆形"}),
        ("is there a red shape in the image?", "yes", "图中有红色的图形吗？", {"是的", "有"}),
        ("does the image contain a circle?", "no", "图中有圆形吗？", {"不是", "没有"}),
        ("is no green shape present?", "yes", "图中没有绿色的图形吗？", {"是的", "没有"}),
        ("does the image not contain a triangle?", "no", "图中没有三角形吗？", {"不是", "有"}),
    ],
)
def test_shapes_are_asked_in_chinese(question: str, answer: str, asked: str, said: set[str]) -> None:
    translated, people = chinese(question, answer)
    assert (translated, set(people), len(people)) == (asked, said, 10)


def test_what_is_no_question_about_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match="not one of easy-vqa's questions"):
        chinese("how many shapes are there?", "2")


def test_the_commonest_answer_is_scored_like_any(tmp_path: Path) -> None:
    task = TASKS["exact"]
    items = [Item(str(number), "en", (truth,)) for number, truth in enumerate(("cat", "dog", "dog"))]
    result = Result(task, "en", items, [Said("")] * 3, [()] * 3, Scores({"accuracy": 0.0}))
    retrieval = Result(TASKS["retrieval"], "zh", items, [Said("")] * 3, [()] * 3, Scores({}))
    told = list(baselines(Found("x", {}, [result, retrieval], [])))
    assert told == ["always 'dog', en: accuracy 66.7", "by lot, zh: R@1 33.33, R@10 100.0"]
