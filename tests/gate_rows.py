"""Rows for the tests of the quality gates, in one line each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from training.gates.gate import Doubt, Finding, Reject
from training.gates.row import Line, Row

ROLES = {"caption": ("caption",), "vqa": ("question", "answer"), "dialogue": ("user", "assistant")}


def lines(task: str, text: str) -> tuple[Line, ...]:
    texts = [text] if task == "caption" else text.split("|")
    roles = ROLES.get(task, ("question", "answer"))
    return tuple(Line(roles[number % len(roles)], text) for number, text in enumerate(texts))


def translated(
    source: str, made: str, *, task: Any = "caption", into: str = "zh", key: str = "row", **more: Any
) -> Row:
    """A row of one caption, or of several lines between bars: "What is it?|A cat." """
    language = "en" if into == "zh" else "zh"
    return Row(key, task, language, lines(task, source), {into: lines(task, made)}, **more)


def generated(en: str, zh: str, *, context: str = "", task: Any = "description", **more: Any) -> Row:
    made = {"en": lines(task, en), "zh": lines(task, zh)}
    return Row("row", task, "en", (Line("context", context),), made, translated=False, **more)


def verdict(check: Callable[[Row], Finding | None], row: Row) -> str:
    """ "reject: kind", "doubt: kind" or "well"."""
    found = check(row)
    assert found is None or isinstance(found, Reject | Doubt)
    return "well" if found is None else f"{type(found).__name__.lower()}: {found.kind}"
