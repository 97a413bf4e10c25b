"""Models of known quality, and judges of known character, for the tests' language model server."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tests.llm_rules import is_chinese, last_text, number

Messages = Sequence[Mapping[str, Any]]
_BETWEEN = re.compile(r"<<<\n(.*?)\n>>>", re.DOTALL)
_QUALITY = re.compile(r"quality (\d+)")


def _answer(quality: int, messages: Messages) -> str:
    """Four in five as good as the model is, the others at random: by the question, the same tomorrow."""
    text = last_text(messages)
    drawn = number(f"{quality} {text}", 5)
    said = quality if drawn else number(f"luck {quality} {text}", 10)
    return f"quality {said}: {'一只狗' if is_chinese(text) else 'a dog'}, number {number(text, 1000)}"


def good(messages: Messages, _: object) -> str:
    return _answer(8, messages)


def fair(messages: Messages, _: object) -> str:
    return _answer(6, messages)


def poor(messages: Messages, _: object) -> str:
    return _answer(3, messages)


def judge(messages: Messages, _: object) -> dict[str, str]:
    """Fair: the greater quality wins."""
    first, second = (_quality(text) for text in _BETWEEN.findall(last_text(messages))[-2:])
    verdict = "A" if first > second else "B" if second > first else "tie"
    return {"reason": f"{first} and {second}", "verdict": verdict}


def takes_the_first(messages: Messages, _: object) -> dict[str, str]:
    """Unless one is better by far."""
    first, second = (_quality(text) for text in _BETWEEN.findall(last_text(messages))[-2:])
    return {"reason": "it came first", "verdict": "B" if second > first + 3 else "A"}


def _quality(text: str) -> int:
    found = _QUALITY.search(text)
    return int(found.group(1)) if found else -1
