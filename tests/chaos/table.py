"""The table, as it is printed and as it stands in docs/reliability.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.chaos.verdict import Verdict

HEAD = (
    "fault",
    "breaks",
    "requests",
    "answered",
    "refused",
    "broken off, told so",
    "left",
    "failed",
    "worst extra latency s",
    "time to recover s",
)
COUNTED = ("answered", "refused", "told", "left", "failed")


def row(verdict: Verdict) -> list[str]:
    counts = [str(verdict.counts[word]) for word in COUNTED]
    return [
        verdict.fault,
        str(verdict.breaks),
        str(verdict.requests),
        *counts,
        f"{verdict.extra:.2f}",
        f"{verdict.recovery:.1f}",
    ]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
