"""Accuracy of short answers: VQAv2's rule (also OK-VQA's), GQA's exact match, and a plain one for both languages.

VQAv2 (Antol et al. 2015, arXiv 1505.00468, and visualqa.org/evaluation): each question has answers of ten people. An
answer scores min(1, n / 3), where n of nine people gave it, averaged over leaving out each of the ten. Before that
both sides are made alike: lower case, number words to digits, no articles, apostrophes of contractions put in, full
stops away but between digits, other punctuation away (apostrophes and colons stay). The published script does so for
the people's answers only where they are not all the same word; here it is always done, as the published text says.
There is no published rule for Chinese: width and case are folded, punctuation and white space dropped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# With fewer answers nobody could reach 1.
FEWEST = 4
_NUMBERS = dict(zip("zero one two three four five six seven eight nine".split(), "0123456789", strict=True))  # noqa: SIM905
_NUMBERS |= {"none": "0", "ten": "10"}
_ARTICLES = ("a", "an", "the")
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_STOP = re.compile(r"\.(?!\d)")
_NUMBER_COMMA = re.compile(r"\d,\d")
_ENDINGS = {
    "'t": "ain aren can couldn didn doesn don hadn hasn haven isn mightn mustn needn oughtn shan shouldn wasn weren "
    "won wouldn",
    "'ve": "could i might must not should they we what where who would you",
    "'ll": "how it somebody someone something they what who why you",
    "'re": "there they what why you",
    "'d": "he how it someone something there they where who you",
    "'s": "he how somebody someone that there what when where who why",
    "'m": "i",
    "'clock": "o",
    "'am": "ma",
    "'all": "y",
}


def _contractions() -> dict[str, str]:
    found = {"twas": "'twas"}
    for ending, stems in _ENDINGS.items():
        for stem in stems.split():
            whole = stem + ending
            found[whole.replace("'", "")] = whole
    return found


_CONTRACTIONS = _contractions()


def alike(answer: str, language: str) -> str:
    """The answer as it is compared. See the module."""
    text = " ".join(answer.split())
    if language == "zh":
        folded = unicodedata.normalize("NFKC", text).casefold()
        return "".join(one for one in folded if unicodedata.category(one)[0] not in "PZ")
    words = (_NUMBERS.get(word, word) for word in _without_marks(text.lower()).split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_marks(text: str) -> str:
    # A mark beside a space goes, one between letters parts them; "1,000" makes all marks of its answer go.
    together = _NUMBER_COMMA.search(text) is not None
    plain = text
    for mark in _MARKS:
        gone = together or f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if gone else " ")
    return _STOP.sub("", plain)


def vqa_accuracy(said: str, people: Sequence[str], language: str = "en") -> float:
    """Between 0 and 1. Raises ValueError for fewer people than anybody could be right with."""
    if len(people) < FEWEST:
        raise ValueError(f"VQAv2's rule needs the answers of at least {FEWEST} people, not {len(people)}")
    mine = alike(said, language)
    agreeing = sum(alike(answer, language) == mine for answer in people)
    # Leaving out one who agrees leaves one agreement less, leaving out another leaves all.
    left_out = agreeing * min(1.0, (agreeing - 1) / 3) + (len(people) - agreeing) * min(1.0, agreeing / 3)
    return left_out / len(people)


def exactly(said: str, truths: Sequence[str]) -> float:
    """GQA's: 1 for the very answer. Case, outer white space and a closing full stop do not count."""
    return float(_bare(said) in {_bare(truth) for truth in truths})


def _bare(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(".。").strip()
