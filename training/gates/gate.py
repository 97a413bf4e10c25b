"""What a quality gate is: it looks at a row and says what is wrong with it, if anything.

A `Reject` throws the row away. A `Doubt` keeps it: the gate saw something that is often wrong and often right, which
is counted on its own, so that a person can look and choose. `kind` is a short name that never holds text of the row;
`detail` is for the person who looks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from training.gates.row import Row

_DETAIL = 160


@dataclass(frozen=True)
class Reject:
    """The row is not kept."""

    gate: str
    kind: str
    detail: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", self.detail[:_DETAIL])


@dataclass(frozen=True)
class Doubt:
    """The row is kept, and counted."""

    gate: str
    kind: str
    detail: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", self.detail[:_DETAIL])


Finding = Reject | Doubt


def worst(findings: Iterable[Finding | None]) -> Finding | None:
    """The first reject, after which none is looked for; else the first doubt, or None."""
    doubt: Finding | None = None
    for found in findings:
        if isinstance(found, Reject):
            return found
        doubt = doubt or found
    return doubt


class Gate(Protocol):
    """A gate that looks at one row at a time."""

    @property
    def name(self) -> str: ...

    def check(self, row: Row) -> Finding | None:
        """What is wrong with the row; None when nothing is."""
        ...
