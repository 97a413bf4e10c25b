"""Every reason that a condition or an Event can have is explained in docs/operations.md, and no other one is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from services.operator import verdict
from tests.parsed import parsed

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "operations.md").read_text("utf-8")
MODULES = sorted((ROOT / "services" / "operator").glob("*.py"))
# Which argument of a call is the reason: of a condition's, and of an Event's. `fail` and `refuse` make both.
CONDITIONS = {"condition": 2, "with_condition": 3, "fail": 2, "refuse": 2, "give_up": 2}
EVENTS = {"tell": 0, "Emit": 0}
WORD = re.compile(r"…?[A-Z][A-Za-z]+")


def constants(node: ast.AST) -> Iterator[str]:
    """Reasons in an expression: whichever it may choose; `…` stands for the part of one that is computed."""
    if isinstance(node, ast.JoinedStr):
        yield "…" + "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and WORD.fullmatch(node.value):
        yield node.value
    else:
        for inner in ast.iter_child_nodes(node):
            yield from constants(inner)


def given(calls: dict[str, int]) -> set[str]:
    """Reasons that stand in calls of these functions."""
    found: set[str] = set()
    for path in MODULES:
        for node in ast.walk(parsed(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if len(node.args) > (place := calls.get(name, len(node.args))):
                    found |= {*constants(node.args[place])}
    return found


def assigned() -> set[str]:
    """Reasons that are given a name first: `reason`."""
    found: set[str] = set()
    for path in MODULES:
        for node in ast.walk(parsed(path.read_text("utf-8"))):
            if isinstance(node, ast.Assign) and "reason" in {
                inner.id for target in node.targets for inner in ast.walk(target) if isinstance(inner, ast.Name)
            }:
                found |= {*constants(node.value)}
    return found


def documented(heading: str, column: int) -> set[str]:
    """Words in that column of the table under that heading."""
    section = DOCUMENT.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("|")][2:]
    return {word for row in rows for word in WORD.findall(row[column])}


def test_every_reason_of_a_condition_is_explained() -> None:
    assert documented("Conditions of a TrainingJob", 2) == given(CONDITIONS) | assigned()


def test_every_reason_of_an_event_is_explained() -> None:
    """Those of a failure are also conditions, and explained as such."""
    assert documented("Events of a TrainingJob", 1) == given(EVENTS)


def test_every_reason_of_a_failed_attempt_is_explained() -> None:
    assert documented("Why an attempt ended", 1) == {
        verdict.REJECTED,
        verdict.DISRUPTED,
        verdict.CRASHED,
        verdict.AGAIN,
    }
