"""Is a text in the language that it is said to be in?

Chinese is told by its script: Han letters, with as many Latin names, codes, URLs and quotations in between as a
Chinese text has, but no kana or hangul, and no English words outside quotations. A text without any Han letter may
be nothing but names ("NASA", "iPhone"), which is a doubt, or digits and emoji, which is well. English is told by its
script and, from `MIN_WORDS` words on, by py3langid (LangID.py's n-gram model, arXiv 1209.2834 describes the method):
on shorter texts such a model guesses. Traditional characters are counted as a doubt, or rejected where asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from training.gates.gate import Doubt, Finding, Reject, worst
from training.gates.row import Row
from training.gates.scripts import Scripts, latin_word, script_of, scripts, uncoded, unquoted

MIN_WORDS = 8
_MIN_PROBABILITY = 0.99
_CANDIDATES = ("en", "de", "fr", "es", "it", "pt", "nl", "pl", "sv", "da", "fi", "tr", "vi", "id", "ro", "cs", "la")
# Lower-case words that no name or code consists of.
_ENGLISH = re.compile(
    r"\b(?:the|a|an|is|are|was|were|of|and|with|on|in|at|to|from|this|that|there|it|its|by|for|not|has|have|what)\b"
)
# Where two of these stand the model need not be asked; none is a word of its other languages.
_SURELY_ENGLISH = re.compile(r"\b(?:the|and|with|this|that|are|which|there|from)\b")


@dataclass(frozen=True)
class Language:
    """`traditional`: "keep" counts rows in traditional characters, "reject" throws them away."""

    traditional: str = "keep"
    name: str = field(default="language", init=False)

    def check(self, row: Row) -> Finding | None:
        looks = {"zh": self._chinese, "en": self._english}
        return worst(looks[language](line.text) for language, lines in row.texts.items() for line in lines)

    def _chinese(self, text: str) -> Finding | None:
        found = scripts(unquoted(text))
        if foreign := _foreign(found):
            return Reject(self.name, f"{foreign} where Chinese is due", text)
        if not found.han:
            return self._without_han(text)
        if found.latin_words > found.han or len(_ENGLISH.findall(uncoded(unquoted(text)))) > 1:
            return Reject(self.name, "English words left in Chinese", text)
        if is_traditional(text):
            kind = "traditional characters"
            return Reject(self.name, kind, text) if self.traditional == "reject" else Doubt(self.name, kind, text)
        return None

    def _without_han(self, text: str) -> Finding | None:
        found = scripts(text)
        if found.han or not found.letters:
            return None
        words = latin_word.findall(text)
        if len(words) <= 3 and all(any(letter.isupper() for letter in word) for word in words):
            return Doubt(self.name, "only names where Chinese is due", text)
        return Reject(self.name, "English where Chinese is due", text)

    def _english(self, text: str) -> Finding | None:
        found = scripts(unquoted(text))
        if foreign := _foreign(found):
            return Reject(self.name, f"{foreign} where English is due", text)
        if found.han > found.latin_words:
            return Reject(self.name, "Chinese where English is due", text)
        if found.latin_words < MIN_WORDS or len(set(_SURELY_ENGLISH.findall(text))) > 1:
            return Doubt(self.name, "Chinese characters in English", text) if found.han else None
        if other := _model().other_than_english(text):
            return Reject(self.name, "another language where English is due", f"{other}: {text}")
        return Doubt(self.name, "Chinese characters in English", text) if found.han else None


def _foreign(found: Scripts) -> str | None:
    """The script that neither language is written in, when more than a tenth of the letters are of it."""
    for name, count in (("Japanese", found.kana), ("Korean", found.hangul), ("another script", found.other)):
        if count > 0.1 * found.letters:
            return name
    return None


class _Model:
    """py3langid's model, told to choose among languages that could be taken for English."""

    @cached_property
    def _identifier(self) -> Any:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415

        identifier = LanguageIdentifier.from_pickled_model(MODEL_FILE, norm_probs=True)
        identifier.set_languages(list(_CANDIDATES))
        return identifier

    def other_than_english(self, text: str) -> str | None:
        """The language that the text surely is in, when that is not English."""
        language, probability = self._identifier.classify(text)
        return str(language) if language != "en" and probability >= _MIN_PROBABILITY else None


@cache
def _model() -> _Model:
    return _Model()


@cache
def _forms() -> tuple[frozenset[str], frozenset[str]]:
    """Characters that only traditional and only simplified writing has, by the two old national standards.

    GB 2312 has the simplified forms; of Big5 only the first plane (the 5401 common characters) is taken, because
    rare characters that GB 2312 lacks are the same in both writings.
    """
    common = _decoded("big5", range(0xA4, 0xC7), (*range(0x40, 0x7F), *range(0xA1, 0xFF)))
    simplified = _decoded("gb2312", range(0xB0, 0xF8), range(0xA1, 0xFF))
    return common - simplified, frozenset(one for one in simplified if not _encodes(one, "big5"))


def _decoded(codec: str, leads: Sequence[int], trails: Sequence[int]) -> frozenset[str]:
    """All Han characters in those rows of a double-byte codec."""
    every = "".join(bytes((lead, trail)).decode(codec, "ignore") for lead in leads for trail in trails)
    return frozenset(character for character in every if script_of(character) == "han")


def _encodes(character: str, codec: str) -> bool:
    try:
        character.encode(codec)
    except UnicodeEncodeError:
        return False
    return True


def is_traditional(text: str) -> bool:
    """Whether more of its characters are only traditional than only simplified."""
    traditional, simplified = _forms()
    return sum(map(traditional.__contains__, text)) > sum(map(simplified.__contains__, text))
