"""What is to be asked for one row, and how an answer becomes rows for the gates: the same before a kill and after.

A work is one question. It is worked out from the row and the options alone, so the answers can be looked up in the
ledger at any time, in any order, by any process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from training.build.demonstrations import Demonstrations, load_demonstrations
from training.build.layouts.layout import SourceRow
from training.build.options import BuildOptions, Generated
from training.build.prompts import generate, translate
from training.build.prompts.describe import description
from training.build.units import Read, Unit, units_of
from training.gates.row import Line, Row, Task
from training.llm.question import Question

_MOST_LINES = 32
_OTHER = {"en": "zh", "zh": "en"}
_TASK: Mapping[Generated, Task] = {
    "description": "description",
    "question": "vqa",
    "reasoning": "reasoning",
    "dialogue": "dialogue",
}
# Where the record has what was generated: `dialogue` is the source's own.
FIELD: Mapping[Generated, str] = {
    "description": "description",
    "question": "question",
    "reasoning": "reasoning",
    "dialogue": "conversation",
}
_MOST_IMAGES = 4


@dataclass(frozen=True)
class Made:
    """One entry of a record's field: as a row for the gates, and as the value that is written when they let it pass."""

    field: str
    row: Row
    value: Any


@dataclass(frozen=True)
class Work:
    """`read` makes entries of an answer's value; `lost` stands for them when there is none."""

    step: Literal["translate", "generate"]
    field: str
    question: Question
    read: Callable[[Any], list[Made]]
    lost: tuple[Row, ...]


class Plan:
    """Of one build: from a source row to its works. Holds the demonstrations."""

    def __init__(self, options: BuildOptions, demonstrations: Demonstrations | None = None) -> None:
        self.options = options
        self.demonstrations = demonstrations or load_demonstrations(options.demonstration_path)

    def works(self, source: SourceRow, read: Read | None = None) -> Iterator[Work]:
        """In the order in which what they make stands in the record."""
        read = read or units_of(source.fields, self.options.language)
        for field in self.options.translate:
            mine = [unit for unit in read.units if unit.field == field]
            for some in _chunks(mine):
                yield self._translation(source, some)
        for kind in self.options.generate:
            words = description(source.fields, self.options.language)
            if words or self._shown(source):
                yield self._generation(source, kind, words)

    def undescribed(self, source: SourceRow) -> bool:
        """Whether something is to be generated, and nothing tells what the picture shows."""
        shown = self._shown(source) or description(source.fields, self.options.language)
        return bool(self.options.generate) and not shown

    def _shown(self, source: SourceRow) -> Sequence[bytes]:
        return source.images[:_MOST_IMAGES] if self.options.show_images else ()

    def _translation(self, source: SourceRow, units: Sequence[Unit]) -> Work:
        language = self.options.language
        target = _OTHER[language]
        # A turn that only shows a picture has nothing to translate.
        lines = [line for unit in units for line in unit.lines if line.text]

        def read(value: Any) -> list[Made]:
            texts = iter(translate.texts(value))
            made = []
            for unit in units:
                said = tuple(Line(line.role, next(texts) if line.text else "") for line in unit.lines)
                row = _row(source, unit.name, task=unit.field, language=language, lines=unit.lines, made={target: said})
                both = {language: [line.text for line in unit.lines], target: [line.text for line in said]}
                made.append(Made(unit.field, row, unit.value({name: both[name] for name in ("en", "zh")})))
            return made

        lost = tuple(
            _row(source, unit.name, task=unit.field, language=language, lines=unit.lines, made={}) for unit in units
        )
        return Work("translate", units[0].field, translate.question(lines, language, target), read, lost)

    def _generation(self, source: SourceRow, kind: Generated, words: str) -> Work:
        options, field = self.options, FIELD[kind]
        shots = self.demonstrations.drawn(kind, options.shots, source.key)
        question = generate.question(
            kind,
            words,
            self._shown(source),
            shots,
            languages=options.languages,
            items=options.items,
            seed=options.seed,
        )
        context = (Line("context", words),)
        how: Any = {"language": options.language, "translated": False}

        def read(value: Any) -> list[Made]:
            made = []
            for number, item in enumerate(generate.items_of(kind, value)):
                lines = {language: _lines(kind, rounds) for language, rounds in item.items()}
                row = _row(source, f"{field}[{number}]", task=_TASK[kind], lines=context, made=lines, **how)
                made.append(Made(field, row, _value(kind, item)))
            return made

        lost = (_row(source, f"{field}[0]", task=_TASK[kind], lines=context, made={}, **how),)
        return Work("generate", field, question, read, lost)


def _row(
    source: SourceRow,
    name: str,
    *,
    task: Task,
    language: str,
    lines: tuple[Line, ...],
    made: Mapping[str, tuple[Line, ...]],
    translated: bool = True,
) -> Row:
    return Row(
        key=f"{source.key}/{name}",
        task=task,
        language=language,
        source=lines,
        made=made,
        translated=translated,
        image=(lambda: source.images[0]) if source.images else None,
        image_digest=source.image_digests[0] if source.image_digests else "",
        provenance={"source": source.source, "place": source.place},
    )


def _chunks(units: Sequence[Unit]) -> Iterator[list[Unit]]:
    """Units for one question each: many captions at once are cheaper, too many at once are translated carelessly."""
    some: list[Unit] = []
    for unit in units:
        if some and sum(len(one.lines) for one in some) + len(unit.lines) > _MOST_LINES:
            yield some
            some = []
        some.append(unit)
    if some:
        yield some


def _lines(kind: Generated, rounds: Sequence[tuple[str, str]]) -> tuple[Line, ...]:
    roles = ("user", "assistant") if kind == "dialogue" else ("question", "answer")
    return tuple(Line(role, text) for pair in rounds for role, text in zip(roles, pair, strict=True))


def _value(kind: Generated, item: Mapping[str, Sequence[tuple[str, str]]]) -> Any:
    """In a record's words."""
    languages = list(item)
    rounds = [
        [{language: item[language][number][part] for language in languages} for part in (0, 1)]
        for number in range(len(item[languages[0]]))
    ]
    if kind != "dialogue":
        return {"question": rounds[0][0], "answer": rounds[0][1]}
    turns = [
        {"role": role, "text": text} for one in rounds for role, text in zip(("user", "assistant"), one, strict=True)
    ]
    return {"turns": turns}
