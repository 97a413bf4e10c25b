"""Is the translation about as long as its source?

Length is counted in *units*: a Han character, a Latin word or a number is one each. Chinese needs 1.2 to 2 characters
for an English word, but a single word may be one character or five, so both sides get `PRIOR` units before they are
divided: the shorter a text the nearer its ratio to 1. Bounds are by task; docs/data-gates.md has what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from training.gates.gate import Finding, Reject
from training.gates.row import Row
from training.gates.scripts import HAN, LATIN

PRIOR = 4
# Least and most Chinese units for an English one, after the prior.
BOUNDS: Mapping[str, tuple[float, float]] = {
    "caption": (0.5, 2.6),
    "vqa": (0.5, 2.6),
    "dialogue": (0.5, 2.6),
    "description": (0.6, 2.4),
    "reasoning": (0.6, 2.4),
}
_UNIT = re.compile(rf"[{HAN}]|[{LATIN}]+(?:['’-][{LATIN}]+)*|\d+(?:[.,:]\d+)*")


@dataclass(frozen=True)
class LengthRatio:
    """`bounds` are by task, for every pair of lines on its own."""

    bounds: Mapping[str, tuple[float, float]] = field(default_factory=lambda: BOUNDS)
    name: str = field(default="length", init=False)

    def check(self, row: Row) -> Finding | None:
        least, most = self.bounds[row.task]
        for pair in row.pairs:
            ratio = length_ratio(pair.en, pair.zh)
            if not least <= ratio <= most:
                kind = "Chinese too short" if ratio < least else "Chinese too long"
                return Reject(self.name, kind, f"{ratio:.2f}: {pair.en} / {pair.zh}")
        return None


def units(text: str) -> int:
    """Han characters, Latin words and numbers."""
    return len(_UNIT.findall(text))


def length_ratio(english: str, chinese: str) -> float:
    """Chinese units for an English one, both with the prior."""
    return (units(chinese) + PRIOR) / (units(english) + PRIOR)
