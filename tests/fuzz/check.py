"""One hostile input: it is answered or refused, or else it has found a defect."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

# The longest that an input may take, in seconds, and by how much it may make this process grow, in bytes.
MAX_SECONDS = 10.0
MAX_GROWTH = 64 << 20


class Outcome(StrEnum):
    """What became of an input."""

    ANSWERED = "answered"
    REFUSED = "refused"
    CRASHED = "crashed"
    HUNG = "hung"


class Hang(AssertionError):
    """Nothing came within the time."""


class Defect(AssertionError):
    """An answer that must not be."""


@dataclass(frozen=True)
class Target:
    """`feed` tells whether an input was answered or refused; whatever it raises is a defect."""

    name: str
    inputs: SearchStrategy[Any]
    feed: Callable[[Any], Outcome]


@dataclass
class Report:
    """Counts of a target's outcomes; `found` holds what was wrong, with the input."""

    name: str
    counts: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    slowest: float = 0.0
    growth: int = 0
    found: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        return sum(self.counts.values())


def fuzz(target: Target, examples: int, number: int = 0) -> Report:
    """Feeds so many inputs; the seed `number` makes the same ones again."""
    report = Report(target.name)

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def each(value: Any) -> None:
        judge(target, value, report)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about damaged files
        each()
    return report


def judge(target: Target, value: Any, report: Report) -> Outcome:
    """Feeds one input, and notes what came of it."""
    complaint = ""
    before, began = _reset_peak(), time.monotonic()
    try:
        outcome = target.feed(value)
    except Hang as error:
        outcome, complaint = Outcome.HUNG, str(error)
    except Exception:  # noqa: BLE001 (whatever it is, it is what was looked for)
        outcome, complaint = Outcome.CRASHED, traceback.format_exc()
    seconds, growth = time.monotonic() - began, _peak() - before
    if seconds > MAX_SECONDS and not complaint:
        outcome, complaint = Outcome.HUNG, f"took {seconds:.1f} s"
    if growth > MAX_GROWTH and not complaint:
        outcome, complaint = Outcome.CRASHED, f"took {growth >> 20} MiB"
    report.counts[outcome] += 1
    report.slowest, report.growth = max(report.slowest, seconds), max(report.growth, growth)
    if complaint:
        report.found.append(f"{target.name}: {value!r}\n{complaint}")
    return outcome


def _reset_peak() -> int:
    """Forgets the largest size of this process so far; its size now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.split("VmHWM:")[1].split()[0]) << 10
