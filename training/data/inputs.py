"""What people have their pictures and texts in, read as samples of a dataset; what cannot be used is named.

lines        a JSONL file (or a JSON list) of records, with "image": path or "images": [paths]
dialogues    the same with LLaVA's "conversations": from human and gpt, `<image>` where a picture is shown
pictures     a folder, and beside each picture a .txt (its caption) or a .json (its fields) of the same name
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from training.data.writer import Sample, record_bytes
from training.errors import BadData, BadSample
from ziya.errors import InvalidImage
from ziya.images import ImageLimits, inspect

TEXT_FIELDS = ("caption", "vqa", "choice", "label", "ocr", "dialogue")
_NO_TEXT = ("group", "id")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
_TEXTS = (".json", ".txt")
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_MARK = "<image>"


@dataclass(frozen=True)
class Inputs:
    """`count` samples, of which `read(n)` gives one or raises BadSample."""

    count: int
    read: Callable[[int], Sample]

    def samples(self, bad: Callable[[BadSample], None], step: Callable[[], None]) -> Iterator[Sample]:
        """The good ones in order; `bad` hears of the others, `step` of each."""
        for number in range(self.count):
            try:
                yield self.read(number)
            except BadSample as error:
                bad(error)
            step()


def open_inputs(path: Path, language: str, images: Path | None = None) -> Inputs:
    """Picks the reader by what `path` is. Paths of images are relative to `images`, or to where `path` lies.

    `language` is that of texts that do not say it: captions in .txt files and LLaVA's dialogues.
    Raises BadData when there is nothing to read.
    """
    if path.is_dir():
        return _pictures(path, language)
    try:
        with path.open("rb") as file:
            is_list = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}") from error
    read = partial(entry, language=language, images=images or path.parent)
    return _list(path, read) if is_list else _lines(path, read)


def _list(path: Path, read: Callable[[str, Any], Sample]) -> Inputs:
    try:
        entries = json.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise BadData(f"{path} is not a JSON list: {error}") from error
    return Inputs(len(entries), lambda number: read(f"{path.name}[{number}]", entries[number]))


def _lines(path: Path, read: Callable[[str, Any], Sample]) -> Inputs:
    places = _line_places(path)

    def line(number: int) -> Sample:
        at, offset, size = places[number]
        key = f"{path.name}:{at}"
        with path.open("rb") as file:
            file.seek(offset)
            text = file.read(size).removeprefix(b"\xef\xbb\xbf")
        return read(key, parsed(key, text))

    return Inputs(len(places), line)


def _line_places(path: Path) -> list[tuple[int, int, int]]:
    """Number, offset and size of each line with something on it."""
    places, offset = [], 0
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                places.append((number, offset, len(text)))
            offset += len(text)
    return places


def _pictures(folder: Path, language: str) -> Inputs:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    pictures = [path for path in found if path.suffix.lower() in _PICTURES]
    stems = {path.with_suffix("") for path in pictures}
    # A text whose picture is lost must be told, not left out in silence.
    lonely = [path for path in found if path.suffix.lower() in _TEXTS and path.with_suffix("") not in stems]
    named = [*pictures, *lonely]

    def picture(number: int) -> Sample:
        path = named[number]
        key = str(path.relative_to(folder))
        if number >= len(pictures):
            raise BadSample(key, "missing image: there is no picture of the same name")
        return checked(key, fields_beside(key, path, language), [path])

    return Inputs(len(named), picture)


def fields_beside(key: str, picture: Path, language: str) -> Mapping[str, Any]:
    fields, text = picture.with_suffix(".json"), picture.with_suffix(".txt")
    if fields.is_file():
        return _object(key, parsed(key, fields.read_bytes()))
    if not text.is_file():
        raise BadSample(key, f"missing text: neither {fields.name} nor {text.name} lies beside it")
    try:
        return {"caption": {language: text.read_text("utf-8-sig").strip()}}
    except UnicodeDecodeError as error:
        raise BadSample(key, f"wrong text: {text.name} is not UTF-8") from error


def parsed(key: str, text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadSample(key, f"wrong JSON: {error}") from error


def _object(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadSample(key, f"wrong JSON: a record is an object, not {type(value).__name__}")
    return value


def entry(key: str, value: Any, *, language: str, images: Path) -> Sample:
    """A sample from an object of a JSONL file or a JSON list."""
    fields = dict(_object(key, value))
    given = [*_listed(fields.pop("image", None)), *_listed(fields.pop("images", None))]
    if not all(isinstance(path, str) and path for path in given):
        raise BadSample(key, "missing image: image must be a path, and images a list of paths")
    said = fields.pop("conversations", None)
    if said is not None:
        fields["dialogue"] = {"turns": dialogue_turns(key, said, len(given), language)}
    return checked(key, fields, [images / path for path in given])


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def dialogue_turns(key: str, said: Any, images: int, language: str) -> list[dict[str, Any]]:
    """Our turns of LLaVA's conversation. Marks count the images; without any, the first turn shows them all."""
    if not isinstance(said, list) or not said or len(said) % 2:
        raise BadSample(key, "wrong dialogue: turns must be pairs of human and gpt")
    turns: list[dict[str, Any]] = []
    shown = 0
    for number, turn in enumerate(said):
        role, text = _spoken(key, turn, number)
        parts = text.split(_MARK) if role == "user" else [text]
        marked = range(shown, shown + len(parts) - 1)
        shown += len(marked)
        words = " ".join(part.strip() for part in parts if part.strip())
        turns.append({"role": role, "text": {language: words}, **({"images": list(marked)} if marked else {})})
    if not shown and images:
        turns[0]["images"] = list(range(images))
    elif shown != images:
        raise BadSample(key, f"wrong dialogue: {shown} times {_MARK}, but images: {images}")
    return turns


def _spoken(key: str, turn: Any, number: int) -> tuple[str, str]:
    role = _SPEAKERS.get(str(turn.get("from"))) if isinstance(turn, Mapping) else None
    if role != ("user", "assistant")[number % 2] or not isinstance(turn.get("value"), str):
        raise BadSample(key, "wrong dialogue: turns must be texts from human and gpt by turns")
    return role, turn["value"]


def checked(key: str, fields: Mapping[str, Any], paths: Sequence[Path]) -> Sample:
    """The sample, when it has a text, no empty one, and pictures whose headers can be read."""
    check_fields(key, fields)
    return fields, [_picture(key, path) for path in paths]


def check_fields(key: str, fields: Mapping[str, Any]) -> None:
    """Raises BadSample unless a record has a text, and no empty one, and can be written."""
    for name in TEXT_FIELDS:
        if name in fields and _is_empty(fields[name]):
            raise BadSample(key, f"empty text: {name}")
    # A recipe may read any field, so a record needs one of ours or another with something in it.
    if all(name in _NO_TEXT or _is_empty(value) for name, value in fields.items()):
        raise BadSample(key, f"missing text: the record has none of {', '.join(TEXT_FIELDS)}")
    labels = fields.get("labels", {})
    if not isinstance(labels, Mapping) or not all(isinstance(value, str) for value in labels.values()):
        raise BadSample(key, "wrong labels: each label needs a class name")
    try:
        record_bytes(fields)
    except (ValueError, RecursionError) as error:
        raise BadSample(key, f"wrong text: {error}") from error


def check_picture(key: str, data: bytes, name: str) -> bytes:
    """The picture itself. Raises BadSample, calling it `name`, when its header cannot be read."""
    try:
        inspect(data, ImageLimits())
    except InvalidImage as error:
        raise BadSample(key, f"wrong image: {name}: {error}") from error
    return data


def _is_empty(value: Any) -> bool:
    """Whether nothing is there, or an empty text somewhere within (a turn that shows a picture needs none)."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, Mapping):
        silent = bool(value.get("images"))
        return not value or any(
            _is_empty(one) for name, one in value.items() if name != "images" and not (silent and name == "text")
        )
    if isinstance(value, list):
        return not value or any(map(_is_empty, value))
    return value is None


def _picture(key: str, path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise BadSample(key, f"missing image: {path}: {getattr(error, 'strerror', None) or error}") from error
    return check_picture(key, data, str(path))
