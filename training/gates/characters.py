"""Characters that no text has: control characters, replacement signs, and text that was decoded with a wrong codec."""

from __future__ import annotations

import codecs
import re

# C0 and C1 but tab and newlines, lone surrogates, non-characters and private use; zero-width joiners belong to emoji.
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufdd0-\ufdef\ue000-\uf8ff\ufff9-\ufffb]"
)
_REPLACED = re.compile("\ufffd|锟斤拷|锟斤|烫烫烫|屯屯屯")
# UTF-8 read as Windows-1252: a lead byte's character and what a continuation byte may look like there.
_AS_LATIN = re.compile(
    "(?:[\u00c2-\u00f4][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc"
    "\u2013\u2014\u2018-\u201e\u2020-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122]+)+"
)
_FIRST_CJK = 0x2E80
_RUN = re.compile(r"[^\x00-\x7f]{4,}")


def damage(text: str) -> str | None:
    """What is wrong with the characters, in a word; None when nothing is."""
    if text.isascii():
        return "control characters" if _CONTROL.search(text) else None
    if _REPLACED.search(text):
        return "replacement characters"
    if any(_is_utf8(_windows_bytes(run)) for run in _AS_LATIN.findall(text)):
        return "mojibake"
    if _CONTROL.search(text):
        return "control characters"
    return "mojibake" if any(_is_utf8(_gbk_bytes(run), _FIRST_CJK) for run in _RUN.findall(text)) else None


def _is_utf8(raw: bytes, at_least: int = 0) -> bool:
    """Whether bytes that were decoded otherwise are UTF-8, of characters from `at_least` on.

    The last character may be incomplete, for its bytes need not fill whole characters of the wrong codec. Real text
    happens to be UTF-8 too ("未知状态" in GBK is four Greek and Arabic letters), but not of Han characters.
    """
    try:
        text, used = codecs.utf_8_decode(raw, "strict", False)
    except UnicodeDecodeError:
        return False
    return used > 1 and (not at_least or all(ord(character) >= at_least for character in text))


def _windows_bytes(run: str) -> bytes:
    """Windows-1252 has five holes, which decoders fill with the control characters of Latin-1."""
    return b"".join(c.encode("latin-1") if ord(c) < 256 else c.encode("cp1252") for c in run)


def _gbk_bytes(run: str) -> bytes:
    try:
        return run.encode("gbk")
    except UnicodeEncodeError:
        return b""
