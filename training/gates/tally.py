"""What the gates found, counted: rows, verdicts by gate and kind, histograms, a few rows to look at.

A tally belongs to a part of the rows. Tallies of parts add up to the tally of the whole, in any order, and are plain
JSON in between, so that shards are counted where they are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from training.errors import BadData
from training.gates.gate import Finding, Reject
from training.gates.histogram import Histogram
from training.gates.row import Row
from training.gates.sample import Samples

ACCEPTED = "accepted"
VERSION = 1
_EDGES: Mapping[str, tuple[float, ...]] = {
    "length ratio": tuple(round(0.2 * number, 1) for number in range(1, 21)),
    "agreement": tuple(round(0.05 * number, 2) for number in range(-4, 20)),
    "back-translation": tuple(5.0 * number for number in range(1, 20)),
    "tokens": tuple(float(edge) for edge in (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)),
}


class Tally:
    """`verdict` counts a row, `measure` a value. Gates that looked at no row are counted by `looked` with 0."""

    def __init__(self, samples: int = 12) -> None:
        self.rows = self.accepted = 0
        self.by_task: Counter[str] = Counter()
        self.looked: Counter[str] = Counter()
        self.rejects: Counter[tuple[str, str]] = Counter()
        self.doubts: Counter[tuple[str, str]] = Counter()
        self.histograms = {name: Histogram.over(edges) for name, edges in _EDGES.items()}
        self.samples = Samples(samples)

    def verdict(self, row: Row, findings: Iterable[Finding]) -> Reject | None:
        """Counts the row with all that was found; returns the first reject. A row is counted once."""
        first = self.note(row, findings)
        if first is None:
            self.settle(row.task, row.digest, lambda: row, None)
        return first

    def note(self, row: Row, findings: Iterable[Finding]) -> Reject | None:
        """As `verdict`, but a row without a reject is not accepted yet: whoever knows calls `settle`."""
        found = tuple(findings)
        self.rows += 1
        self.by_task[row.task] += 1
        first = next((finding for finding in found if isinstance(finding, Reject)), None)
        for finding in found:
            counter = self.rejects if isinstance(finding, Reject) else self.doubts
            counter[finding.gate, finding.kind] += 1
            prefix = "rejected" if isinstance(finding, Reject) else "doubted"
            self.samples.offer(f"{prefix}/{finding.gate}", row, finding)
        return first

    def settle(self, task: str, digest: str, row: Callable[[], Row], reject: Reject | None) -> None:
        """The last word on a row that was noted. `row` gives it, should it be one to look at."""
        if reject is None:
            self.accepted += 1
            self.samples.offer_unread(f"{ACCEPTED}/{task}", digest, row, None)
        else:
            self.rejects[reject.gate, reject.kind] += 1
            self.samples.offer_unread(f"rejected/{reject.gate}", digest, row, reject)

    def measure(self, name: str, value: float) -> None:
        """Adds to a histogram: "length ratio", "agreement" (a cosine), "back-translation" (chrF), "tokens"."""
        self.histograms[name].add(value)

    def merge(self, other: Tally) -> None:
        """Adds the tally of other rows."""
        self.rows += other.rows
        self.accepted += other.accepted
        for mine, theirs in ((self.by_task, other.by_task), (self.looked, other.looked)):
            mine.update(theirs)
        self.rejects.update(other.rejects)
        self.doubts.update(other.doubts)
        for name, histogram in other.histograms.items():
            self.histograms[name].merge(histogram)
        self.samples.merge(other.samples)

    def state(self) -> dict[str, Any]:
        """All of it as plain JSON, equal for equal rows."""
        return {
            "version": VERSION,
            "rows": self.rows,
            "accepted": self.accepted,
            "by_task": dict(sorted(self.by_task.items())),
            "looked": dict(sorted(self.looked.items())),
            "rejects": _nested(self.rejects),
            "doubts": _nested(self.doubts),
            "histograms": {name: histogram.state() for name, histogram in sorted(self.histograms.items())},
            "samples": self.samples.state(),
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Tally:
        """The tally that gave this state. Raises BadData when it is something else."""
        made = cls()
        try:
            if state["version"] != VERSION:
                raise BadData(f"a tally of version {state['version']} cannot be read, only {VERSION}")
            made.rows, made.accepted = int(state["rows"]), int(state["accepted"])
            made.by_task, made.looked = Counter(state["by_task"]), Counter(state["looked"])
            made.rejects, made.doubts = _flat(state["rejects"]), _flat(state["doubts"])
            made.histograms |= {name: Histogram.restore(one) for name, one in state["histograms"].items()}
            made.samples.restore(state["samples"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadData(f"the tally cannot be read: {error!r}") from error
        return made


def _nested(counts: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """{gate: {kind: count}}, the most frequent kind first."""
    by_gate: dict[str, dict[str, int]] = {}
    for (gate, kind), count in sorted(counts.items(), key=lambda one: (one[0][0], -one[1], one[0][1])):
        by_gate.setdefault(gate, {})[kind] = count
    return by_gate


def _flat(nested: Mapping[str, Mapping[str, int]]) -> Counter[tuple[str, str]]:
    return Counter({(gate, kind): int(count) for gate, kinds in nested.items() for kind, count in kinds.items()})
