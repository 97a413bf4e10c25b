"""VQAv2's layout as it is published: a questions file, an annotations file, a folder of pictures.

A row is a picture with all its questions; the answer is the one that most of the ten people gave. OK-VQA is laid
out alike. (Layout: visualqa.org, "Download".)
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.build.layouts.coco import found_in
from training.build.layouts.groups import Groups
from training.build.layouts.json_elements import Elements, JsonFile
from training.build.layouts.layout import Layout, SourceRow, described
from training.data.inputs import checked
from training.errors import BadData, BadSample

_EMPTY = Elements()


class _Pair:
    """A questions file and its answers."""

    def __init__(self, questions: Path, answers: Path, root: Path, images: Path | None) -> None:
        self.asked, self.answered = JsonFile(questions), JsonFile(answers)
        self.questions = self.asked.lists.get("questions", _EMPTY)
        self.answers = self.answered.lists.get("annotations", _EMPTY)
        if not len(self.questions) or not len(self.answers):
            raise BadData(f"{questions} and {answers.name} are not VQAv2's: no questions, or no annotations")
        self.by_image = Groups(int(one["image_id"]) for one in self.asked.objects("questions"))
        self.by_question = Groups(int(one["question_id"]) for one in self.answered.objects("annotations"))
        self.pictures = self.by_image.keys()
        split = self.asked.subtype
        self.name = f"COCO_{split}_{{:012d}}.jpg" if split else "{:012d}.jpg"
        given = [images] if images else []
        self.folders = [*given, root / "images" / split, root / split, root / "images", root]
        self._others: dict[int, Path] | None = None

    def read(self, number: int) -> SourceRow:
        image = int(self.pictures[number])
        key = f"{self.asked.path.name}:image {image}"
        found: list[dict[str, Any]] = []
        lacking: list[str] = []
        try:
            for place in self.by_image.of(image):
                question = json.loads(self.asked.element(self.questions, place))
                places = self.by_question.of(int(question["question_id"]))
                if places:
                    answer = json.loads(self.answered.element(self.answers, places[0]))
                    found.append({"question": question["question"], "answer": _answer(answer)})
                else:
                    lacking.append(f"missing answer: question {question['question_id']}")
        except (ValueError, KeyError, TypeError) as error:
            raise BadSample(key, f"wrong JSON: a question or an answer is not VQAv2's: {error!r}") from error
        if not found:
            raise BadSample(key, f"missing answer: none of the picture's {len(lacking)} questions has one")
        fields: dict[str, Any] = {"id": f"vqa/{image}", "vqa": found}
        _, pictures = checked(key, fields, [self._picture(image)])
        return SourceRow(key, self.asked.path.name, image, fields, pictures, None, tuple(lacking))

    def _picture(self, image: int) -> Path:
        named = found_in(self.folders, self.name.format(image))
        if named.is_file():
            return named
        if self._others is None:
            self._others = _by_number(self.folders)
        return self._others.get(image, named)


def open_vqa(path: Path, images: Path | None) -> Layout:
    """A questions file or the folder that has it; the annotations lie beside. Raises BadData."""
    files = questions_files(path) if path.is_dir() else [path]
    if not files:
        raise BadData(f"{path} has no file of VQA questions (*_questions.json, OpenEnded_*.json)")
    root = path if path.is_dir() else path.parent
    pairs = [_Pair(file, _answers_of(file), root, images) for file in files]

    def read(number: int) -> SourceRow:
        for pair in pairs:
            if number < len(pair.pictures):
                return pair.read(number)
            number -= len(pair.pictures)
        raise IndexError(number)

    inputs = [described(one.path) for pair in pairs for one in (pair.asked, pair.answered)]
    return Layout("vqa", sum(len(pair.pictures) for pair in pairs), read, tuple(inputs))


def questions_files(folder: Path) -> list[Path]:
    found = {path for pattern in ("*questions*.json", "*/*questions*.json") for path in folder.glob(pattern)}
    return sorted(path for path in found if "MultipleChoice" not in path.name)


def _answers_of(questions: Path) -> Path:
    """The annotations file of the same split: `v2_mscoco_train2014_annotations.json` for
    `v2_OpenEnded_mscoco_train2014_questions.json`."""
    split = re.search(r"(train|val|test)(-?dev)?\d{4}", questions.name)
    folders = [questions.parent, *sorted(one for one in questions.parent.parent.iterdir() if one.is_dir())]
    for folder in folders:
        there = sorted(folder.glob("*annotations*.json"))
        same = [path for path in there if split is None or split[0] in path.name]
        if same:
            return same[0]
    raise BadData(f"{questions}: there is no *annotations*.json of the same split beside it")


def _by_number(folders: Sequence[Path]) -> dict[int, Path]:
    """Pictures by the number that their names end with, for folders that name them another way."""
    found: dict[int, Path] = {}
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            digits = re.search(r"(\d+)$", path.stem)
            if digits and path.is_file():
                found.setdefault(int(digits[1]), path)
    return found


def _answer(said: Any) -> str:
    if said.get("multiple_choice_answer"):
        return str(said["multiple_choice_answer"])
    texts = [one["answer"] for one in said["answers"]]
    values, counts = np.unique(texts, return_counts=True)
    return str(values[counts.argmax()])
