"""easy-vqa's questions and answers in Chinese. They are of a few patterns, so this is a table and no translation.

Yes and no are answered in Chinese by the verb or by 是的 and 不是: both are given, five times each of ten.
"""

from __future__ import annotations

import re

COLOURS = {
    **{"red": "红色", "green": "绿色", "gray": "灰色", "teal": "青色"},
    **{"black": "黑色", "yellow": "黄色", "brown": "棕色", "blue": "蓝色"},
}
SHAPES = {"circle": ("圆形", "圆形"), "rectangle": ("矩形", "长方形"), "triangle": ("三角形", "三角形")}
_COLOUR = re.compile(r"what (?:color is|is the color of) the (\w+)\?")
_SHAPE = re.compile(r"what is the (\w+) shape\?")
_THERE = re.compile(r"(?:is|does) .*?\b(?:a|no) ((?:\w+ shape)|circle|rectangle|triangle)\b.*\?")
_NOT = re.compile(r"\b(?:not|no)\b")


def chinese(question: str, answer: str) -> tuple[str, list[str]]:
    """The question, and ten answers. Raises ValueError for a pattern that is none of theirs."""
    if found := _COLOUR.fullmatch(question):
        return f"{_thing(found[1])}是什么颜色？", [COLOURS[answer]] * 10
    if found := _SHAPE.fullmatch(question):
        return f"{COLOURS[found[1]]}的图形是什么形状？", list(SHAPES[answer]) * 5
    if question.startswith("what shape "):
        return "图中是什么形状？", list(SHAPES[answer]) * 5
    found = _THERE.fullmatch(question)
    if not found:
        raise ValueError(f"not one of easy-vqa's questions: {question!r}")
    denies = _NOT.search(question) is not None
    is_there = (answer == "yes") is not denies
    said = ["是的" if answer == "yes" else "不是", "有" if is_there else "没有"]
    return f"图中{'没有' if denies else '有'}{_thing(found[1])}吗？", said * 5


def _thing(words: str) -> str:
    if words == "shape":
        return "图形"
    colour, _, rest = words.partition(" ")
    return f"{COLOURS[colour]}的图形" if rest else SHAPES[words][0]
