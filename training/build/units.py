"""The texts of a record that are one thing each: a caption, a question with its answer, a dialogue.

A unit is what is translated together, looked at by the gates together, and kept or thrown away together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from training.build.options import TRANSLATED, Translated
from training.gates.row import Line


@dataclass(frozen=True)
class Unit:
    """The `number`-th entry of a record's field. `shown` are the pictures that each line of a dialogue shows."""

    field: Translated
    number: int
    lines: tuple[Line, ...]
    shown: tuple[tuple[int, ...], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.field}[{self.number}]"

    def value(self, texts: Mapping[str, Sequence[str]]) -> Any:
        """The entry again, in a record's words, with `texts` by language instead of its own."""
        said = [{language: lines[place] for language, lines in texts.items()} for place in range(len(self.lines))]
        if self.field == "caption":
            return said[0]
        if self.field == "vqa":
            return {"question": said[0], "answer": said[1]}
        return {"turns": [self._turn(place, text) for place, text in enumerate(said)]}

    def _turn(self, place: int, text: Mapping[str, str]) -> dict[str, Any]:
        images = self.shown[place] if self.shown else ()
        return {"role": self.lines[place].role, "text": text, **({"images": list(images)} if images else {})}


class Read(NamedTuple):
    """Of a record: units to translate, entries that are in both languages already, and what cannot be used, and why."""

    units: tuple[Unit, ...]
    whole: tuple[tuple[Translated, Any], ...]
    unfit: tuple[str, ...]


def units_of(fields: Mapping[str, Any], language: str) -> Read:
    """Of the fields that can be translated, each entry once."""
    units: list[Unit] = []
    whole: list[tuple[Translated, Any]] = []
    unfit: list[str] = []
    for field in TRANSLATED:
        for number, entry in enumerate(_entries(fields.get(field))):
            texts = list(_texts(field, entry))
            if not texts or any(text is None for _, text in texts):
                unfit.append(f"wrong field: {field}[{number}] is not a {field}")
            elif all(_has_both(text) for _, text in texts):
                whole.append((field, entry))
            else:
                lines = [Line(role, _plain(text, language)) for role, text in texts]
                shown = _shown(entry) if field == "dialogue" else ()
                # A turn that shows a picture may say nothing.
                if all(line.text or (shown and shown[place]) for place, line in enumerate(lines)):
                    units.append(Unit(field, number, tuple(lines), shown))
                else:
                    unfit.append(f"missing language: {field}[{number}] has no text in {language}")
    return Read(tuple(units), tuple(whole), tuple(unfit))


def _entries(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _texts(field: str, entry: Any) -> Iterator[tuple[str, Any]]:
    """(role, text) of every line; a text is a string or a mapping of languages, anything else is None."""
    if field == "caption":
        yield "caption", _text(entry)
    elif not isinstance(entry, Mapping):
        yield field, None
    elif field == "vqa":
        yield "question", _text(entry.get("question"))
        answers = _entries(entry.get("answer"))
        yield "answer", _text(answers[0] if answers else None)
    else:
        for turn in _entries(entry.get("turns")):
            is_turn = isinstance(turn, Mapping) and turn.get("role") in ("user", "assistant")
            yield (turn["role"], _text(turn.get("text"))) if is_turn else ("user", None)


def _text(value: Any) -> Any:
    if isinstance(value, str):
        return value
    is_said = isinstance(value, Mapping) and all(isinstance(one, str) for one in value.values())
    return value if is_said else None


def _has_both(text: Any) -> bool:
    return isinstance(text, Mapping) and {"en", "zh"} <= set(text)


def _plain(text: Any, language: str) -> str:
    found = text.get(language, "") if isinstance(text, Mapping) else text
    return str(found).strip()


def _shown(entry: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(turn.get("images") or ()) for turn in entry["turns"])
