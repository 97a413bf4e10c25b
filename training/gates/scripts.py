"""Which scripts a text is written in. Only letters count: digits, marks and emoji belong to every language."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache
from typing import NamedTuple

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af々〇"
LATIN = "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u1e00-\u1eff"
latin_word = re.compile(f"[{LATIN}]+(?:['’-][{LATIN}]+)*")
_SCRIPTS = (
    ("han", re.compile(f"[{HAN}]")),
    ("latin", re.compile(f"[{LATIN}]")),
    ("kana", re.compile("[\u3041-\u3096\u30a1-\u30fa\u31f0-\u31ff]")),
    ("hangul", re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")),
)
_LETTER = re.compile(r"[^\W\d_]")
# What a Chinese text may hold in Latin letters without being English: URLs, code, codes with a digit in them.
_NEUTRAL = re.compile(r"https?://\S+|www\.\S+|\S+@\S+\.\S+|`[^`]*`|<[^<>]*>|\b\w*\d\w*\b", re.ASCII)
_QUOTED = re.compile(r"“[^“”]*”|「[^「」]*」|『[^『』]*』|《[^《》]*》|\"[^\"]*\"|(?<!\w)'[^']*'(?!\w)|‘[^‘’]*’")


class Scripts(NamedTuple):
    """How many letters of each script a text has; `latin_words` counts runs of Latin letters."""

    han: int
    latin: int
    latin_words: int
    kana: int
    hangul: int
    other: int

    @property
    def letters(self) -> int:
        return self.han + self.latin + self.kana + self.hangul + self.other


@cache
def script_of(character: str) -> str | None:
    """han, latin, kana, hangul or other; None for what is no letter."""
    if not _LETTER.match(character) and character not in "々〇":
        return None
    return next((name for name, letters in _SCRIPTS if letters.match(character)), "other")


def uncoded(text: str) -> str:
    """The text without URLs, addresses, code and codes, which are of no language."""
    return _NEUTRAL.sub(" ", text if text.isascii() else unicodedata.normalize("NFKC", text))


def scripts(text: str) -> Scripts:
    """Counts the letters of the uncoded text by script."""
    text = uncoded(text)
    found = dict.fromkeys(("han", "latin", "kana", "hangul", "other"), 0)
    for character, count in Counter(text).items():
        script = script_of(character)
        if script is not None:
            found[script] += count
    words = len(latin_word.findall(text)) if found["latin"] else 0
    return Scripts(found["han"], found["latin"], words, found["kana"], found["hangul"], found["other"])


def quotations(text: str) -> list[str]:
    """What stands in quotation marks of either language, without them."""
    return [quoted[1:-1] for quoted in _QUOTED.findall(text)]


def unquoted(text: str) -> str:
    """The text without its quotations; the whole text where nothing else has a letter."""
    rest = _QUOTED.sub(" ", text)
    return rest if _LETTER.search(rest) else text
