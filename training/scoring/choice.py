"""Which option of a multiple choice an answer means. Options are asked as "(a) … (b) …" (training/data/tasks.py).

In this order: the text of one option; a letter that stands alone, in brackets or before a mark, first in the answer;
a letter after "answer is" or its Chinese; the only option whose text occurs in the answer. Anything else is no answer,
and counts as wrong. A bare "a" before a word is taken for the article, never for the letter.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from training.scoring.vqa import alike

_LEADING = re.compile(r"^\s*(?:\(([a-z])\)|（([a-z])）|([a-z])(?:[.):：、。）]|\s*$))", re.IGNORECASE)
_ANNOUNCED = re.compile(
    r"(?:answer|option|choice|答案|选项|选)\s*(?:is|是|为)?\s*[:：]?\s*[(（]?([a-z])(?![a-z])", re.IGNORECASE
)


def chosen(said: str, options: Sequence[str], language: str = "en") -> int | None:
    """The number of the option, or None when the answer names none or several."""
    plain, texts = alike(said, language), [alike(option, language) for option in options]
    if texts.count(plain) == 1:
        return texts.index(plain)
    for pattern in (_LEADING, _ANNOUNCED):
        if found := pattern.search(said):
            letter = string.ascii_lowercase.index(next(filter(None, found.groups())).lower())
            return letter if letter < len(options) else None
    named = [number for number, text in enumerate(texts) if text and _within(text, plain, language)]
    return named[0] if len(named) == 1 else None


def _within(text: str, answer: str, language: str) -> bool:
    return text in answer if language == "zh" else f" {text} " in f" {answer} "
