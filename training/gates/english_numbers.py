"""Numbers in English: 1,000; 2.5 million; 50%; 3rd; the 1990s; 7pm; 3/4; twenty-three; a dozen; half.

What is often no number is read but not firm: "one", "first", "second", "half", ordinals, months and weekdays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

from training.gates.written_number import Number, number, plain, take

_SMALL = re.findall(
    "[a-z]+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen",
)
_TENS = re.findall("[a-z]+", "twenty thirty forty fifty sixty seventy eighty ninety")
_CARDINAL = {word: value for value, word in enumerate(_SMALL)}
_CARDINAL |= {word: 10 * place for place, word in enumerate(_TENS, 2)}
_SCALE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_ORDINALS = re.findall(
    "[a-z]+",
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth",
)
_LOOSE: dict[str, tuple[Fraction | int, ...]] = {word: (value,) for value, word in enumerate(_ORDINALS, 1)}
_LOOSE |= {"a": (1,), "an": (1,), "single": (1,), "once": (1,), "half": (Fraction(1, 2), 30), "decade": (10,)}
_LOOSE |= dict.fromkeys(("both", "pair", "pairs", "couple", "double", "twin", "twins", "twice", "dual"), (2,))
_LOOSE |= dict.fromkeys(("triple", "trio", "triplets", "thrice"), (3,))
_LOOSE |= {word: (Fraction(1, 4), 15) for word in ("quarter", "quarters")} | {"century": (100,), "centuries": (100,)}
_MONTHS = re.findall("[a-z]+", "january february march april may june july august september october november december")
_LOOSE |= {name: (value,) for value, month in enumerate(_MONTHS, 1) for name in (month, month[:3])}
_DAYS = re.findall("[a-z]+", "monday tuesday wednesday thursday friday saturday sunday")
_LOOSE |= {day: (value,) for value, day in enumerate(_DAYS, 1)}

_FRACTION = re.compile(r"(?<![\d/])(\d+)/(\d+)(?![\d/])")
_FULL_HOUR = re.compile(r"(?<=\d):00\b")
_DIGITS = re.compile(
    r"(?<![\d.])(?P<value>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)"
    r"(?:\s*-?(?P<scale>hundred|thousand|million|billion|trillion|dozen)s?\b|(?P<k>[kK])\b(?!\w)"
    r"|\s*(?P<half>[aApP]\.?[mM]\b)|(?P<ordinal>st|nd|rd|th)\b|(?P<decade>'?s)\b|\s*(?P<percent>%))?"
)
_SPOKEN = "|".join(sorted((*_CARDINAL, *_SCALE), key=len, reverse=True))
_RUN = re.compile(rf"\b(?:{_SPOKEN})(?:(?:[\s-]+(?:and\s+)?)(?:{_SPOKEN}))*\b", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z]+")


def english_numbers(text: str) -> list[Number]:
    """All numbers of a text, in no order."""
    text = _FULL_HOUR.sub("", plain(text))
    fractions, text = take(_FRACTION, text, _fraction)
    digits, text = take(_DIGITS, text, _digits)
    words, text = take(_RUN, text, _spoken)
    return [*fractions, *digits, *words, *_loose(text)]


def _fraction(found: re.Match[str]) -> Iterator[Number]:
    """1/2 may be a half, and 5/6 a day in May or June."""
    above, below = int(found[1]), int(found[2])
    yield number(found[0], above, below, *([Fraction(above, below)] if below else []), digits=True)


def _digits(found: re.Match[str]) -> Iterator[Number]:
    value = Fraction(found["value"].replace(",", ""))
    values = [value]
    if found["scale"]:
        values = [value * _SCALE[found["scale"].lower()]]
    elif found["k"]:
        values += [value * 1000]
    elif found["half"] and value <= 12:
        values += [value + 12]
    elif found["decade"]:
        # The 1890s are the nineties of the 19th century.
        values += [value % 100, Fraction(value // 100 + 1)]
    elif found["percent"]:
        values += [value / 100]
    yield number(found[0], *values, digits=True, firm=not found["ordinal"])


def _spoken(found: re.Match[str]) -> Iterator[Number]:
    words = re.split(r"[\s-]+", found[0].lower())
    values = _readings([word for word in words if word != "and"])
    yield number(found[0], *values, firm=found[0].lower() not in ("one", "zero", "dozen", "hundred"))


def _loose(text: str) -> Iterator[Number]:
    for found in _WORD.finditer(text):
        values = _LOOSE.get(found[0].lower())
        if values:
            yield number(found[0], *values, firm=False)


def _readings(words: list[str]) -> list[int]:
    """One value; or all there may be where the words are no single number ("nineteen eighty-four", "one two three")."""
    total = current = 0
    parts: list[int] = []
    last = 10**15
    for word in words:
        if (scale := _SCALE.get(word)) is not None:
            current = max(current, 1) * scale
            if scale >= 1000:
                total, current = total + current, 0
            last = scale
            continue
        value = _CARDINAL[word]
        fits = last >= 100 or (last in range(20, 100) and last % 10 == 0 and 0 < value < 10)
        if not fits:
            parts.append(total + current)
            total = current = 0
        current += value
        last = value if value else 1
    parts.append(total + current)
    if len(parts) == 1:
        return parts
    return [*parts, int("".join(map(str, parts)))]
