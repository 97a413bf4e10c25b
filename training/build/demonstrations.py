"""Demonstrations of generated data: what is known of a picture, and what a good writer made of it, in both languages.

The file that comes along (`demonstrations.yaml`) is our own; a person may give another of the same form:

    - kind: question
      captions: [two dogs on a beach]
      boxes: [{label: dog, box: [0.1, 0.4, 0.3, 0.8]}]
      ocr: []
      items:
        - en: {instruction: "How many dogs are there?", response: "There are two dogs."}
          zh: {instruction: "图中有几只狗？", response: "图中有两只狗。"}

An item of a dialogue has `rounds`, a list of such. Which demonstrations stand before a picture is drawn by its row.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from training.build.options import Generated
from training.build.prompts.describe import description
from training.errors import BadConfig
from training.part import Part
from training.strict_yaml import StrictLoader

OWN = Path(__file__).with_name("demonstrations.yaml")


class Said(Part):
    """One instruction and its response."""

    instruction: str = Field(min_length=1)
    response: str = Field(min_length=1)


class Round(Part):
    """The same in both languages."""

    en: Said
    zh: Said


class Item(Part):
    """An instruction with its response, or the rounds of a dialogue."""

    en: Said | None = None
    zh: Said | None = None
    rounds: tuple[Round, ...] = ()


class Box(Part):
    """[left, top, right, bottom] in fractions."""

    label: str
    box: tuple[float, float, float, float]


class Entry(Part):
    """One demonstration as the file has it."""

    kind: Generated
    captions: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    ocr: tuple[str, ...] = ()
    items: tuple[Item, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Demonstration:
    """`words` as `describe` puts them, and the answer that was given to them."""

    kind: Generated
    words: str
    items: tuple[Item, ...]

    def answer(self, languages: Sequence[str]) -> dict[str, Any]:
        """In the form of the schema, in these languages."""
        return {"items": [_of_item(item, languages) for item in self.items]}


@dataclass(frozen=True)
class Demonstrations:
    """All of a file. `digest` is the file's SHA-256."""

    entries: tuple[Demonstration, ...]
    digest: str

    def drawn(self, kind: Generated, shots: int, by: str) -> list[Demonstration]:
        """`shots` of the kind, or all there are, in an order that `by` decides."""
        known = [one for one in self.entries if one.kind == kind]
        seed = hashlib.blake2b(f"{kind}/{by}".encode(errors="surrogatepass"), digest_size=8).digest()
        return random.Random(int.from_bytes(seed, "big")).sample(known, min(shots, len(known)))


def load_demonstrations(path: Path | None = None) -> Demonstrations:
    """Raises BadConfig."""
    path = path or OWN
    try:
        content = path.read_bytes()
        raw = yaml.load(content, Loader=StrictLoader)
        entries = TypeAdapter(tuple[Entry, ...]).validate_python(raw)
    except OSError as error:
        raise BadConfig(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BadConfig(f"{path} is no file of demonstrations: {place}: {first['msg']}") from error
    made = tuple(Demonstration(entry.kind, _words(entry), _whole(entry, path)) for entry in entries)
    return Demonstrations(made, hashlib.sha256(content).hexdigest())


def _whole(entry: Entry, path: Path) -> tuple[Item, ...]:
    for item in entry.items:
        is_whole = bool(item.rounds) if entry.kind == "dialogue" else item.en is not None and item.zh is not None
        if not is_whole:
            wanted = "rounds" if entry.kind == "dialogue" else "en and zh"
            raise BadConfig(f"{path}: an item of kind {entry.kind} needs {wanted}")
    return entry.items


def _words(entry: Entry) -> str:
    fields: dict[str, Any] = {"caption": list(entry.captions), "ocr": list(entry.ocr)}
    fields["boxes"] = [{"label": box.label, "box": list(box.box)} for box in entry.boxes]
    return description(fields, "en")


def _of_item(item: Item, languages: Sequence[str]) -> dict[str, Any]:
    if item.rounds:
        return {"rounds": [_of_round(one, languages) for one in item.rounds]}
    return _of_round(item, languages)


def _of_round(one: Round | Item, languages: Sequence[str]) -> dict[str, Any]:
    return {language: getattr(one, language).model_dump() for language in languages}
