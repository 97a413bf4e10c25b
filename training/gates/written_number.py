"""A number as it stands in a text: all values that it may be read as, and whether a translation has to keep it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import NamedTuple

# NFKC would make "m²" an "m2", and a space between thousands an ordinary one.
_RAISED = re.compile("[\u00b2\u00b3\u00b9\u2070-\u2079\u2080-\u2089]")
_THIN = re.compile("(?<=\\d)[\u00a0\u2009\u202f](?=\\d{3}(?!\\d))")


class Number(NamedTuple):
    """`digits`: written in digits. `firm`: it is a number for sure, where "one" or "first" is often a mere word."""

    values: frozenset[Fraction]
    written: str
    digits: bool
    firm: bool


def plain(text: str) -> str:
    """Digits of all widths and fractions in ASCII."""
    return unicodedata.normalize("NFKC", _THIN.sub("", _RAISED.sub(" ", text))).replace("\u2044", "/")


def number(written: str, *values: Fraction | int, digits: bool = False, firm: bool = True) -> Number:
    return Number(frozenset(map(Fraction, values)), written, digits, firm)


def take(
    pattern: re.Pattern[str], text: str, read: Callable[[re.Match[str]], Iterable[Number]]
) -> tuple[list[Number], str]:
    """The numbers that `pattern` finds, and the text without them, so that no part of them is read again."""
    found = [one for match in pattern.finditer(text) for one in read(match)]
    return found, pattern.sub(" ", text) if found else text
