"""What the language model of the tests says: rules that anybody can check, for translating and for filling schemas.

`translate` takes two letters of an English word to one Chinese character, so its text has about the length of a real
translation; numbers, and names inside a sentence, stay as they are. `back` undoes it, but for the first capital.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import product
from string import ascii_lowercase
from typing import Any

_PIECES = [*map("".join, product(ascii_lowercase, repeat=2)), *ascii_lowercase]
# GB 2312's first level: the 3,755 commonest characters. The first half stands inside a word, the second ends it.
_COMMON = [bytes([row, cell]).decode("gb2312") for row in range(0xB0, 0xD7) for cell in range(0xA1, 0xFF)]
_INSIDE = dict(zip(_PIECES, _COMMON, strict=False))
_LAST = dict(zip(_PIECES, _COMMON[len(_PIECES) :], strict=False))
_BACK = {character: piece for piece, character in _INSIDE.items()} | {
    character: piece + " " for piece, character in _LAST.items()
}
_MARKS = {",": "，", ".": "。", "?": "？", "!": "！", ":": "：", ";": "；"}
_UNMARKS = {chinese: latin for latin, chinese in _MARKS.items()}
_WORD = re.compile(r"[A-Za-z]+|\d[\d.,]*\d|\d|\s+|.", re.DOTALL)


def translate(text: str) -> str:
    """English to what looks like Chinese."""
    said, first = [], True
    for word in _WORD.findall(text):
        if word.isascii() and word.isalpha():
            kept = word[0].isupper() and not first
            said.append(f" {word} " if kept else _spelt(word.lower()))
            first = False
        elif word.isspace():
            said.append("\n" if "\n" in word else "")
        else:
            said.append(_MARKS.get(word, word))
            first = first or word in ".?!"
    return re.sub(r" +", " ", "".join(said)).strip()


def back(text: str) -> str:
    """What `translate` was given, in lower case but for names."""
    words = "".join(_UNMARKS.get(character, _BACK.get(character, character)) for character in text)
    return re.sub(r" +([,.?!:;])", r"\1", re.sub(r" {2,}", " ", re.sub(r"([,.?!:;])(?=\w)", r"\1 ", words))).strip()


def is_chinese(text: str) -> bool:
    """More of its characters than not."""
    return sum("一" <= character <= "鿿" for character in text) * 2 > len(text.strip())


def last_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Of the last message, without its images."""
    content = messages[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def answer(messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any] | None) -> Any:
    """The rule when none is given: the last message in the other language, or the schema filled with it."""
    text = last_text(messages)
    if schema is not None:
        return fill(schema, text)
    return back(text) if is_chinese(text) else translate(text)


def fill(schema: Mapping[str, Any], text: str) -> Any:
    """JSON that fits a schema (of the plain kind), the same for the same text."""
    if "enum" in schema:
        return schema["enum"][number(text, len(schema["enum"]))]
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: fill(part, f"{name} {text}") for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        count = max(schema.get("minItems", 1), min(2, schema.get("maxItems", 2)))
        return [fill(schema.get("items", {"type": "string"}), f"{index} {text}") for index in range(count)]
    if kind in {"integer", "number"}:
        return schema.get("minimum", 0) + number(text, int(schema.get("maximum", 9) - schema.get("minimum", 0)) + 1)
    return bool(number(text, 2)) if kind == "boolean" else translate(text)


def number(text: str, below: int) -> int:
    """From the text's digest, evenly."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % below


def _spelt(word: str) -> str:
    pieces = [word[start : start + 2] for start in range(0, len(word), 2)]
    return "".join(_INSIDE[piece] for piece in pieces[:-1]) + _LAST[pieces[-1]]
