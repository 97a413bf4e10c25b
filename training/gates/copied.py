"""What a language model leaves in its answer although nobody asked for it: the source, the prompt, its own preamble.

untranslated      the translation is the source again, or has four English words of it in a row outside quotations;
                  a name, a code or a number alone may stay as it is
source repeated   the translation stands beside the source
preamble          "Here is the translation:", 译文：, a code fence
template          placeholders that were never filled: {question}, [INSERT …], <answer>
prompt            eight words (or twelve Han characters) in a row of the prompts that were sent
described         the answer tells of the description that stood for the picture ("based on the caption")
repeated          an answer is its own question
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from training.gates.gate import Doubt, Finding, Reject
from training.gates.row import Pair, Row
from training.gates.scripts import latin_word, unquoted

_WORDS, _HAN = 8, 12
_COPIED_WORDS = 4
_PREAMBLE = re.compile(
    r"^\W*(?:(?:sure|certainly|of course|okay)[,.! ]+)?(?:here (?:is|are|'s)|here’s|below is|the following is)"
    r" (?:the|a|your|my)?\s*(?:\w+ ){0,2}(?:translat|chinese|english|question|answer|response|caption|json|dialog)"
    r"|^\W*(?:translation|translated text|chinese translation|english translation|output|json)\s*[:：]"
    r"|^\W*(?:当然[，,！! ]*|好的[，,！! ]*)?(?:以下|下面|这)是\S{0,12}(?:翻译|译文|中文版|英文版|问答|对话|回答|JSON)"
    r"|^\W*(?:翻译|译文|中文翻译|英文翻译|中文译文|翻译结果|翻译如下|输出)\s*[:：]|(?:翻译|译文)如下[:：]"
    r"|```|^\s*\{\s*\"(?:zh|en|translation|question|answer|text)\"",
    re.IGNORECASE,
)
_TEMPLATE = re.compile(
    r"\{\{? ?(?:question|answer|caption|text|name|image|source|target|language|context|input|output|dialogue"
    r"|translation) ?\}?\}|\[(?:insert|your|question|answer|caption|插入|填入)\b[^\]]{0,30}\]"
    r"|</?(?:answer|question|caption|translation|text|response|context|example)s?>|(?-i:\bTODO:)|\blorem ipsum\b",
    re.IGNORECASE,
)
_DESCRIBED = re.compile(
    r"\b(?:based on|according to|from|in|given) the (?:given |provided |above |image )?"
    r"(?:captions?|bounding box(?:es)?|object coordinates|textual descriptions?|provided descriptions?|context)\b"
    r"|\bthe (?:captions?|bounding boxes) (?:mention|describe|state|indicate|say|do not|does not|doesn't)"
    r"|(?:根据|基于|从)(?:所?给定?的|提供的|上述|以上|图片的?)?(?:标题|字幕|文字描述|边界框|坐标|图片描述|图像描述|描述信息)"
    r"|(?:标题|字幕|边界框|图片描述)(?:中)?(?:提到|提及|描述|说明|指出|没有)",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"[^\W_]")
_UNIT = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")


@dataclass(frozen=True)
class Copied:
    """`prompts`: the instructions and demonstrations that the language model was sent."""

    prompts: Sequence[str] = ()
    name: str = field(default="copied", init=False)

    def check(self, row: Row) -> Finding | None:
        for language, line in row.made_lines:
            if kind := self._left(line.text, row.translated):
                return Reject(self.name, kind, f"{language}: {line.text}")
        if row.translated:
            for pair in row.pairs:
                if kind := _untranslated(pair):
                    return Reject(self.name, kind, f"{pair.en} / {pair.zh}")
            return None
        return self._repeats(row)

    def _left(self, text: str, translated: bool) -> str | None:
        if _PREAMBLE.search(text):
            return "preamble"
        if _TEMPLATE.search(text):
            return "template left"
        if not translated and _DESCRIBED.search(text):
            return "tells of its description"
        if self._prompt_runs and not self._prompt_runs.isdisjoint(_runs(text)):
            return "prompt repeated"
        return None

    def _repeats(self, row: Row) -> Finding | None:
        for lines in row.made.values():
            for asked, said in zip(lines[::2], lines[1::2], strict=False):
                if letters(asked.text) == letters(said.text) != "":
                    return Reject(self.name, "answer repeats its question", said.text)
        given = {letters(line.text) for line in row.source if len(_UNIT.findall(line.text)) >= _WORDS}
        for _, line in row.made_lines:
            if letters(line.text) in given:
                return Doubt(self.name, "answer is the description", line.text)
        return None

    @cached_property
    def _prompt_runs(self) -> frozenset[str]:
        return frozenset(run for prompt in self.prompts for run in _runs(prompt))


def letters(text: str) -> str:
    """Letters and digits alone, in lower case: what is left of two texts that only differ in marks and spaces."""
    return "".join(_TOKEN.findall(text.casefold()))


def _untranslated(pair: Pair) -> str | None:
    source, target = (pair.zh, pair.en) if pair.source == "zh" else (pair.en, pair.zh)
    plain_source, plain_target = letters(source), letters(target)
    if not plain_source or not plain_target:
        return None
    if plain_source == plain_target:
        return None if _may_stay(source) or _may_stay(target) else "untranslated"
    if pair.source == "zh":
        repeated = len(plain_source) >= 6 and plain_source in plain_target
        return "source repeated" if repeated else None
    # Single letters are variables as often as words.
    words = [word.casefold() for word in latin_word.findall(source) if len(word) > 1]
    if len(words) >= _COPIED_WORDS and plain_source in plain_target:
        return "source repeated"
    # Quotations stay as they are in good translations.
    rest = f" {' '.join(word.casefold() for word in latin_word.findall(unquoted(target)) if len(word) > 1)} "
    for start in range(len(words) - _COPIED_WORDS + 1):
        run = words[start : start + _COPIED_WORDS]
        if f" {' '.join(run)} " in rest and not _is_name(source, run[0]):
            return "partly untranslated"
    return None


def _may_stay(text: str) -> bool:
    """Whether a text needs no translation: no letters, or at most three words that all look like names or codes."""
    words = re.findall(r"[^\W\d_]\w*", text)
    return len(words) <= 3 and all(any(c.isupper() or c.isdigit() for c in word) for word in words)


def _is_name(source: str, first: str) -> bool:
    """Whether the run begins with a capital in the middle of the source, like the title of a work."""
    return re.search(rf"\w\W+{re.escape(first.capitalize())}\b", source) is not None


def _runs(text: str) -> Iterator[str]:
    """Runs of units: of eight where words are in it, of twelve where all are Han characters."""
    units = _UNIT.findall(text.casefold())
    for start in range(len(units) - _WORDS + 1):
        run = units[start : start + _WORDS]
        if all("\u3400" <= unit <= "\u9fff" for unit in run):
            run = units[start : start + _HAN]
            if len(run) < _HAN:
                continue
        yield " ".join(run)
