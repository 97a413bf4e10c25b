"""Into which words a caption is cut before it is scored. Scores of different cuts must never be compared.

    words, English      the rules of the Penn Treebank, as the COCO caption evaluation uses them: lower case, clitics
                        and marks apart, then punctuation dropped, but not brackets; hyphenated words stay whole
    characters, Chinese every Chinese character is a word; runs of Latin letters and digits are one word each
    words, Chinese      jieba's accurate mode with its own dictionary and HMM; Latin runs as above

In Chinese all punctuation and white space is dropped, full-width letters and digits become half-width (NFKC), and
Latin letters lower case.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

Cut = Callable[[str], list[str]]

# What the COCO caption evaluation removes after its tokenizer. It means to drop brackets, too, but lists them in upper
# case where they have become lower: so they stay.
_DROPPED = frozenset(["''", "'", "``", "`", '"', *".?!,:;-–—…", "--", "..."])
_AS_PENN = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "€": "$"}
_CLITIC = re.compile(r"(?<=\w)('s|'m|'d|'ll|'re|'ve|n't)\b")
_JOINED = re.compile(r"\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b|\b(gim|lem)(me)\b")
_ENGLISH = re.compile(
    r"n't(?!\w)|'(?:s|m|d|ll|re|ve)(?!\w)|'n'(?!\w)"  # clitics, which have been set apart
    r"|\.\.\.|-{2,}|``|''|[!?]{2,}"
    r"|\d+(?:[.,:/]\d+)+|\.\d+"  # 1,000 and 3.5, 10:30 and .50 are one word each
    r"|(?:[a-z]\.){2,}|(?:mr|mrs|ms|dr|mt|st|jr|sr|prof|vs)\.(?!\w)"
    r"|\w+(?:[-/&'.]\w+)*"
    r"|[^\w\s]"
)
_LATIN_OR_ONE = re.compile(r"[a-z0-9]+(?:[.'-][a-z0-9]+)*|\S")


def english_words(text: str) -> list[str]:
    """See the module."""
    plain = text.lower().replace("’", "'").replace("‘", "'").replace("“", "``").replace("”", "''")
    plain = _JOINED.sub(lambda found: " ".join(filter(None, found.groups())), plain)
    plain = _CLITIC.sub(r" \1", plain)
    words = (_AS_PENN.get(word, word) for word in _ENGLISH.findall(plain))
    return [word for word in words if word not in _DROPPED and set(word) != {"-"}]


def chinese_characters(text: str) -> list[str]:
    """See the module."""
    return [one for one in _LATIN_OR_ONE.findall(_plain_chinese(text)) if not _is_mark(one)]


def chinese_words(text: str) -> list[str]:
    """See the module."""
    words: list[str] = []
    for part in re.findall(r"[a-z0-9]+(?:[.'-][a-z0-9]+)*|[^a-z0-9]+", _plain_chinese(text)):
        words += [part] if part[0].isascii() and part[0].isalnum() else _jieba().lcut(part)
    return [word.strip() for word in words if word.strip() and not _is_mark(word.strip())]


def cuts(language: str) -> Mapping[str, Cut]:
    """The ways to cut a caption of a language, by the name that reports use."""
    if language == "zh":
        return {"characters": chinese_characters, "words": chinese_words}
    return {"words": english_words}


def _plain_chinese(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def _is_mark(word: str) -> bool:
    """Only punctuation, symbols or white space."""
    return all(unicodedata.category(character)[0] in "PSZC" for character in word)


@cache
def _jieba() -> Any:
    import jieba  # noqa: PLC0415  (its dictionary takes a second: only where Chinese words are wanted)

    jieba.setLogLevel(logging.WARNING)
    return jieba.Tokenizer()
