"""Question benchmarks as their owners publish them.

    VQAv2, OK-VQA  v2_OpenEnded_mscoco_val2014_questions.json: {"questions": [{"image_id", "question", "question_id"}],
                   "data_subtype": "val2014"}, and the annotations beside it: {"annotations": [{"question_id",
                   "answers": [{"answer"}], "answer_type"?}]}
    GQA            testdev_balanced_questions.json: {id: {"imageId", "question", "answer", "types": {"structural"}?}}
    ScienceQA      problems.json: {id: {"question", "choices", "answer", "hint", "image", "split"}}, pictures at
                   <split>/<id>/image.png; the split `test` unless another is asked for

Pictures of COCO are named COCO_<subtype>_<12 digits>.jpg, or by the 12 digits alone as in 2017.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training.errors import BadData, BadSample
from training.scoring.files import picture_file
from training.scoring.item import Item, Picture, Read
from training.scoring.tasks import Asking


def vqa_items(
    questions: Mapping[str, Any], annotations: Mapping[str, Any], images: Path, asking: Asking, language: str
) -> Iterator[Read]:
    """Raises BadData for another layout."""
    try:
        answers = {
            one["question_id"]: (tuple(str(said["answer"]) for said in one["answers"]), str(one.get("answer_type", "")))
            for one in annotations["annotations"]
        }
        asked = [(one["question_id"], one["image_id"], str(one["question"])) for one in questions["questions"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadData(f"these are not VQA questions and their annotations: {error!r}") from error
    subtype = str(questions.get("data_subtype", "val2014"))
    for number, picture, text in asked:
        if number not in answers:
            yield BadSample(str(number), "missing text: the annotations have no answers to this question")
            continue
        truths, kind = answers[number]
        shown = _coco_picture(images, picture, subtype)
        yield Item(str(number), language, truths, asking.question(language, text), (shown,), kind=kind)


def gqa_items(questions: Mapping[str, Any], images: Path, asking: Asking, language: str) -> Iterator[Read]:
    """Raises BadData for another layout."""
    for number, one in questions.items():
        try:
            truth, picture, text = str(one["answer"]), str(one["imageId"]), str(one["question"])
            kind = str((one.get("types") or {}).get("structural", ""))
        except (KeyError, TypeError, AttributeError) as error:
            raise BadData(f"question {number} is not GQA's: {error!r}") from error
        shown = picture_file(images, picture)
        yield Item(number, language, (truth,), asking.question(language, text), (shown,), kind=kind)


def science_items(
    problems: Mapping[str, Any], images: Path, asking: Asking, language: str, split: str | None
) -> Iterator[Read]:
    """Problems with and without a picture, as kinds. Raises BadData for another layout."""
    for number, one in problems.items():
        try:
            if one["split"] != (split or "test"):
                continue
            options, right = tuple(map(str, one["choices"])), int(one["answer"])
            hint, file = str(one.get("hint") or "").strip(), str(one.get("image") or "")
            text = f"{hint} {one['question']}".strip()
            truth = options[right]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise BadData(f"problem {number} is not ScienceQA's: {error!r}") from error
        shown = (picture_file(images, f"{one['split']}/{number}/{file}"),) if file else ()
        question = asking.question(language, text, options)
        kind = "with a picture" if file else "without a picture"
        yield Item(number, language, (truth,), question, shown, options, right, kind=kind)


def _coco_picture(images: Path, number: Any, subtype: str) -> Picture:
    name = f"{int(number):012d}" if str(number).isdigit() else str(number)
    older = f"COCO_{subtype}_{name}.jpg"
    return picture_file(images, older if (images / older).is_file() else name)
