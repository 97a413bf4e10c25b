"""Items of our own records: a dataset that `ziya data` made, a JSONL file, or a folder of pictures and texts.

A text field may be a string (of the language that is asked for), a mapping of languages to texts, or a list of either.
A field with "question" and "answer" is a question; with "options" a multiple choice. Of a list of questions each is an
item of its own, `<record>#<number>`. Records without a text in a language give no item in that language. An item's key
is the record's `id`, where it has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.data.inputs import Inputs, open_inputs
from training.data.shards import Dataset
from training.errors import BadSample
from training.scoring.item import Item, Picture, Read
from training.scoring.tasks import Asking

Record = tuple[str, Mapping[str, Any], tuple[Picture, ...]]


def dataset_items(dataset: Dataset, asking: Asking, languages: Sequence[str]) -> Iterator[Read]:
    """Raises BadData."""
    for number in range(len(dataset)):
        try:
            record = dataset.record(number)
            pictures = tuple(Picture(dataset.image, (number, image)) for image in range(record.images))
            key = str(record.fields.get("id", record.key))
            yield from record_items((key, record.fields, pictures), asking, languages)
        except BadSample as error:
            yield error


def file_items(path: Path, images: Path | None, asking: Asking, languages: Sequence[str]) -> Iterator[Read]:
    """Of a JSONL file, a JSON list or a folder. Raises BadData."""
    inputs = open_inputs(path, languages[0], images)
    for number in range(inputs.count):
        try:
            fields, pictures = inputs.read(number)
            key = str(fields.get("id", f"{path.name}:{number}"))
            lazy = tuple(Picture(_picture, (inputs, number, image)) for image in range(len(pictures)))
            yield from record_items((key, fields, lazy), asking, languages)
        except BadSample as error:
            yield error


def record_items(record: Record, asking: Asking, languages: Sequence[str]) -> Iterator[Item]:
    """What one record gives. Raises BadSample where its field is missing or no text or question."""
    key, fields, pictures = record
    name = asking.field or asking.task.field
    if name not in fields:
        raise BadSample(key, f"missing field: {name}")
    for language in languages:
        group = str(fields.get("group", key))
        if asking.task.name == "retrieval":
            # All captions of a picture belong to one item, whatever they are listed as.
            if truths := _texts(fields[name], language):
                yield Item(key, language, truths, pictures=pictures, group=group)
            continue
        values = fields[name] if _is_questions(fields[name]) else [fields[name]]
        for number, value in enumerate(values):
            own = key if len(values) == 1 else f"{key}#{number}"
            if item := _item(own, value, asking, language, pictures):
                yield item


def _is_questions(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) and "question" in one for one in value)
    )


def _item(key: str, value: Any, asking: Asking, language: str, pictures: tuple[Picture, ...]) -> Item | None:
    if not isinstance(value, Mapping) or "question" not in value:
        truths = _texts(value, language)
        return Item(key, language, truths, asking.question(language), pictures) if truths else None
    asked = _texts(value["question"], language)
    if not asked:
        return None
    if "options" in value:
        options = value["options"]
        options = _texts(options.get(language, []) if isinstance(options, Mapping) else options, language)
        right = value.get("answer")
        if type(right) is not int or not 0 <= right < len(options):
            raise BadSample(key, "wrong field: answer must be the number of an option")
        question = asking.question(language, asked[0], options)
        return Item(key, language, (options[right],), question, pictures, options, right)
    truths = _texts(value.get("answer"), language)
    return Item(key, language, truths, asking.question(language, asked[0]), pictures) if truths else None


def _texts(value: Any, language: str) -> tuple[str, ...]:
    """All texts of a language, in order."""
    if isinstance(value, str):
        return (value.strip(),) if value.strip() else ()
    if isinstance(value, Mapping):
        return _texts(value.get(language), language)
    if isinstance(value, list):
        return tuple(text for one in value for text in _texts(one, language))
    return ()


def _picture(inputs: Inputs, number: int, image: int) -> bytes:
    """Read again when it is wanted, so that not all pictures are in memory."""
    _, pictures = inputs.read(number)
    return pictures[image]
