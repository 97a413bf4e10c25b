"""What an evaluation found: of a task in a language, and of all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scores:
    """`metrics` are of all items together, `each` of every item in the items' order."""

    metrics: Mapping[str, float]
    each: Mapping[str, Sequence[float]] = field(default_factory=dict)
