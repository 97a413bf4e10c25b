"""Did the language model refuse, or speak of itself, instead of doing what it was asked?

A refusal is an apology or a statement of inability *and* the deed that an assistant refuses (to help, to translate,
to see pictures): "Sorry, I can't come today" in a dialogue is none. "As an AI language model" is meta talk wherever
it stands. A user may speak so to an assistant, so a line of the user's is only looked at when its source does not say
the same. "I cannot see the picture" may be a good answer where there is no picture: then it is a doubt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from training.gates.gate import Doubt, Finding, Reject, worst
from training.gates.row import Pair, Row

_SELF = r"(?:AI|A\.I\.|artificial intelligence|language model|large language model|LLM|chat ?bot)"
_CANNOT = r"(?:can(?:'t|’t|not)|can not|unable to|not able to|won(?:'t|’t)|must decline to)"
_CANNOT_ZH = "(?:无法|不能|没办法|没有办法|不便|没有能力|没法)"
_MINE_ZH = "(?:人工智能|AI|语言模型|大模型|聊天机器人)"
_THIS = "(?:that|this|your|the|any)"
_PICTURE, _PICTURE_ZH = "(?:image|picture|photo)", "(?:图片|图像|照片)"
_DEEDS = (
    rf"(?:assist|help(?: you)?(?: with)? {_THIS}|fulfil|comply|process {_THIS}|provide|translate|generate"
    rf"|answer {_THIS}|complete {_THIS}|create|respond|engage|continue with|do that|identify|discuss)"
)
_DEEDS_ZH = "(?:提供|回答|协助|帮助|帮|完成|满足|翻译|处理|生成|执行|给出|继续|讨论|识别)"


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_META = _any(
    rf"\b(?:as|since I am|because I am|I am|I'm|I’m) (?:just |only )?(?:an?|your) (?:\w+ )?{_SELF}(?: \w+)?\b",
    r"\b(?:my training data|knowledge cut-?off|OpenAI|ChatGPT|GPT-4|trained by \w+)\b",
    rf"作为(?:一个|一名|一款|一种|您的|你的)?\S{{0,6}}{_MINE_ZH}",
    rf"我(?:只是|是)(?:一个|一名|一款)?\S{{0,8}}{_MINE_ZH}",
    "我的训练数据|知识截止",
)
_REFUSAL = _any(
    r"^\W*(?:i(?:'m| am|’m) (?:very |so |really )?sorry|sorry|apologies|i apologi[sz]e|unfortunately|regrettably)\b"
    rf"[^.!?\n]{{0,40}}?\b{_CANNOT} (?:\w+ )?{_DEEDS}",
    rf"^\W*i (?:am )?{_CANNOT} (?:\w+ )?(?:assist|fulfil|comply|help (?:you )?with (?:that|this)"
    r"|process (?:that|this|your)|provide (?:a |the )?(?:translation|assistance|information)|translate)",
    rf"(?:^|[。！!\n])\W*(?:非常|很|十分|实在)?(?:抱歉|对不起|不好意思|遗憾)[^。！!？?\n]{{0,16}}?{_CANNOT_ZH}"
    rf"(?:为您|为你|给您|给你|够|直接|继续|完整|准确)?{_DEEDS_ZH}",
    rf"^\W*我{_CANNOT_ZH}(?:为您|为你|直接)?"
    "(?:提供(?:翻译|帮助|这|该)|协助|满足(?:这|该|您|你)|翻译|完成(?:这|该|您|你|此))",
)
_BLIND = _any(
    rf"\b{_CANNOT} (?:\w+ )?(?:see|view|access|open|look at|analy[sz]e) (?:an? |{_THIS} )?(?:\w+ )?{_PICTURE}",
    rf"\bdo(?:n't| not|n’t) (?:see|have access to) (?:an? |{_THIS} )?{_PICTURE}",
    rf"{_CANNOT_ZH}(?:直接)?(?:查看|看到|看见|访问|打开|分析|识别)\S{{0,4}}{_PICTURE_ZH}",
    rf"没有(?:看到|收到)\S{{0,3}}{_PICTURE_ZH}",
)
_SPOKEN_BY_MODEL = frozenset({"caption", "answer", "assistant"})


@dataclass(frozen=True)
class Refusals:
    """Looks at what the model wrote, and at the answers of the source."""

    name: str = field(default="refusal", init=False)

    def check(self, row: Row) -> Finding | None:
        return worst(self._pair(pair, row) for pair in row.pairs)

    def _pair(self, pair: Pair, row: Row) -> Finding | None:
        source = {"en": pair.en, "zh": pair.zh}.get(pair.source or "", "")
        made = {"en": (pair.zh,), "zh": (pair.en,)}.get(pair.source or "", (pair.en, pair.zh))
        for text in made:
            kind = _kind(text)
            if kind is None:
                continue
            if pair.role not in _SPOKEN_BY_MODEL and (pair.source is None or _kind(source) is not None):
                continue
            if kind == "says that it sees no picture":
                doubtful = row.image is None or _kind(source) is not None
                return Doubt(self.name, kind, text) if doubtful else Reject(self.name, kind, text)
            return Reject(self.name, f"{kind}, in the source" if _kind(source) is not None else kind, text)
        return None


def _kind(text: str) -> str | None:
    if _REFUSAL.search(text):
        return "refusal"
    if _META.search(text):
        return "speaks of itself"
    return "says that it sees no picture" if _BLIND.search(text) else None
