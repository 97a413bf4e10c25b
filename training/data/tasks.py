"""From a record to what is asked and answered: one function a task.

All that is drawn (which caption, question, answer, wording) comes from the `random.Random` that the caller seeds by
`random_of`, so a sample is worded alike whoever handles it. A record that does not fit its task is a BadSample, whose
reason is "kind: detail"; a source that asks for what cannot be is a BadConfig.
"""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.data.record import Conversation, Draw, Record
from training.data.templates import TEMPLATES, Wordings
from training.errors import BadConfig, BadSample
from training.recipe import Check, Source
from ziya.prompt import Turn

Asked = Source | Check


def random_of(seed: int, position: int, purpose: str = "") -> random.Random:
    """The sample's own random numbers; the same in every process, and for every purpose others."""
    return random.Random(_number_of(seed, position, purpose))


class InTurn(random.Random):
    """What the samples of one visit draw with: all the same wording, and of a record's lists each another entry.

    A list that is shorter than the visit begins again. Wordings are tuples, lists of a record are lists.
    """

    turn = 0

    @classmethod
    def of(cls, seed: int, draw: Draw) -> InTurn:
        """Depends on the record, its source, the epoch and the sample's turn alone."""
        made = cls(_number_of(seed, draw.item, f"visit/{draw.source}/{draw.epoch}"))
        made.turn = draw.turn or 0
        return made

    def choice(self, seq: Any) -> Any:
        return self.sample(seq, len(seq))[self.turn % len(seq)] if isinstance(seq, list) else super().choice(seq)


def _number_of(seed: int, position: int, purpose: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{position}/{purpose}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "big")


def caption_text(record: Record, source: Asked, draw_random: random.Random) -> str:
    """The caption that the Q-Former learns from. Raises BadSample when the record has none in the language."""
    reader = _Reader(record, source.language, draw_random)
    name = source.field or "caption"
    return reader.text(reader.field(name), name)


def conversation(
    record: Record, source: Asked, templates: Mapping[str, Wordings], choose: random.Random
) -> Conversation:
    """The record as one conversation of the source's task. `templates` count before TEMPLATES.

    Raises BadSample for a record that does not fit, BadConfig for an unknown task or set of wordings.
    """
    reader = _Reader(record, source.language, choose)
    if source.task == "dialogue":
        if source.templates is not None:
            raise BadConfig(f"source {source.name}: a dialogue is taken as it is, it has no templates")
        return _dialogue(reader, source.field or "dialogue")
    if source.task not in _TASKS:
        raise BadConfig(
            f"source {source.name}: there is no task {source.task!r}, only {', '.join([*_TASKS, 'dialogue'])}"
        )
    task = _TASKS[source.task]
    if task.needs_image and not record.images:
        raise BadSample(record.key, f"no image: the task {source.task} is about one")
    name = source.field or task.field
    wording = choose.choice(_wordings(source, templates, task.parts))
    asked, answer = task.read(reader, reader.field(name), name)
    question = _fill(wording, asked, source)
    return Conversation((Turn("user", question, tuple(range(record.images))), Turn("assistant", answer)))


@dataclass(frozen=True)
class _Reader:
    """Reads a record's fields in one language, or raises BadSample naming what is wrong and where."""

    record: Record
    language: str
    choose: random.Random

    def bad(self, reason: str) -> BadSample:
        return BadSample(self.record.key, reason)

    def field(self, name: str) -> Any:
        """The record's field; of a list, one."""
        if name not in self.record.fields:
            raise self.bad(f"missing field: {name}")
        return self.one(self.record.fields[name], name)

    def one(self, value: Any, where: str) -> Any:
        if not isinstance(value, list):
            return value
        if not value:
            raise self.bad(f"wrong field: {where} is an empty list")
        return self.choose.choice(value)

    def within(self, value: Any, name: str, where: str) -> Any:
        """The entry `name` of the object at `where`."""
        if not isinstance(value, Mapping):
            raise self.bad(f"wrong field: {where} must be an object, not {type(value).__name__}")
        if name not in value:
            raise self.bad(f"missing field: {where}.{name}")
        return value[name]

    def text(self, value: Any, where: str, *, may_be_empty: bool = False) -> str:
        """A string, or the language's one of a mapping, without outer white space."""
        if isinstance(value, Mapping):
            if self.language not in value:
                there = ", ".join(map(str, value)) or "nothing"
                raise self.bad(f"missing language: {where} has {there}, not {self.language}")
            value = self.one(value[self.language], where)
        if not isinstance(value, str):
            raise self.bad(f"wrong field: {where} must be text, not {type(value).__name__}")
        if not may_be_empty and not value.strip():
            raise self.bad(f"empty text: {where}")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can hold and no tokenizer reads
            raise self.bad(f"wrong field: {where} is not valid Unicode") from error
        return value.strip()


Read = tuple[dict[str, str], str]


def _plain(reader: _Reader, value: Any, where: str) -> Read:
    return {}, reader.text(value, where)


def _vqa(reader: _Reader, value: Any, where: str) -> Read:
    question = reader.text(reader.within(value, "question", where), f"{where}.question")
    answer = reader.one(reader.within(value, "answer", where), f"{where}.answer")
    return {"question": question}, reader.text(answer, f"{where}.answer")


def _choice(reader: _Reader, value: Any, where: str) -> Read:
    question = reader.text(reader.within(value, "question", where), f"{where}.question")
    options, number = reader.within(value, "options", where), reader.within(value, "answer", where)
    if isinstance(options, Mapping):
        if reader.language not in options:
            raise reader.bad(f"missing language: {where}.options has no {reader.language}")
        options = options[reader.language]
    letters = string.ascii_lowercase
    if not isinstance(options, list) or not 2 <= len(options) <= len(letters):
        raise reader.bad(f"wrong field: {where}.options must be a list of 2 to {len(letters)} texts")
    if type(number) is not int or not 0 <= number < len(options):
        raise reader.bad(f"wrong field: {where}.answer must be an option's index, below {len(options)}")
    texts = [reader.text(option, f"{where}.options") for option in options]
    lettered = [f"({letter}) {text}" for letter, text in zip(letters, texts, strict=False)]
    return {"question": question, "options": " ".join(lettered)}, lettered[number]


@dataclass(frozen=True)
class _Task:
    """`field` is read by default, `parts` are the placeholders that a wording must have."""

    field: str
    read: Callable[[_Reader, Any, str], Read]
    parts: tuple[str, ...] = ()
    needs_image: bool = True


_TASKS: Mapping[str, _Task] = {
    "caption": _Task("caption", _plain),
    "vqa": _Task("vqa", _vqa, ("question",), needs_image=False),
    "choice": _Task("choice", _choice, ("question", "options"), needs_image=False),
    "classify": _Task("label", _plain),
    "ocr": _Task("ocr", _plain),
}


def _wordings(source: Asked, templates: Mapping[str, Wordings], parts: Sequence[str]) -> Sequence[str]:
    name = source.templates or source.task
    found = templates.get(name, TEMPLATES.get(name))
    if found is None:
        known = ", ".join(sorted({*templates, *TEMPLATES}))
        raise BadConfig(f"source {source.name}: there are no templates {name!r}, only {known}")
    if not found.get(source.language):
        raise BadConfig(f"source {source.name}: the templates {name!r} have none in {source.language!r}")
    for wording in found[source.language]:
        if lacking := [part for part in parts if f"{{{part}}}" not in wording]:
            raise BadConfig(f"source {source.name}: {wording!r} of the templates {name!r} has no {{{lacking[0]}}}")
    return found[source.language]


def _fill(wording: str, parts: Mapping[str, str], source: Asked) -> str:
    try:
        return wording.format_map(parts)
    except (KeyError, IndexError, ValueError) as error:
        allowed = ", ".join(parts) or "no placeholder"
        raise BadConfig(f"source {source.name}: the template {wording!r} may have {allowed} in braces") from error


def _dialogue(reader: _Reader, name: str) -> Conversation:
    given = reader.within(reader.field(name), "turns", name)
    if not isinstance(given, list) or not given or len(given) % 2:
        raise reader.bad(f"wrong field: {name}.turns must be pairs of a user's and an assistant's turn")
    mentioned = any(isinstance(turn, Mapping) and turn.get("images") for turn in given)
    turns = []
    for number, turn in enumerate(given):
        where, role = f"{name}.turns[{number}]", ("user", "assistant")[number % 2]
        if reader.within(turn, "role", where) != role:
            raise reader.bad(f"wrong field: {where}.role must be {role}, turns alternate")
        images = tuple(range(reader.record.images)) if number == 0 and not mentioned else _images(reader, turn, where)
        if images and role == "assistant":
            raise reader.bad(f"wrong field: {where}.images, but an assistant shows none")
        said = reader.within(turn, "text", where)
        turns.append(Turn(role, reader.text(said, f"{where}.text", may_be_empty=bool(images)), images))
    return Conversation(tuple(turns))


def _images(reader: _Reader, turn: Mapping[str, Any], where: str) -> tuple[int, ...]:
    images = turn.get("images") or []
    if not isinstance(images, list) or any(type(image) is not int for image in images):
        raise reader.bad(f"wrong field: {where}.images must be a list of image numbers")
    for image in images:
        if not 0 <= image < reader.record.images:
            raise reader.bad(f"wrong image: {where} shows image {image} of {reader.record.images}")
    return tuple(images)
