"""What a build would take: all questions are made and none is put."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from training.build.asking import questions
from training.build.options import BuildOptions
from training.build.rows import Rows
from training.build.work import Plan
from training.data.report import BadSamples
from training.llm.asker import Estimate, estimate
from training.llm.ledger import Ledger
from training.llm.question import Question


@dataclass(frozen=True)
class DryRun:
    """`bad` counts the rows and what is wrong with them. Tokens are an estimate: nobody but the server counts them."""

    estimate: Estimate
    rows: int
    bad: BadSamples


@dataclass
class _Counted:
    """Bad rows are counted here and stop nothing: a dry run is there to show them."""

    plan: Plan
    rows: Rows
    step: Callable[[], None]
    bad: BadSamples = field(default_factory=lambda: BadSamples(1.0))

    def questions(self) -> Iterator[Question]:
        return questions(self.plan, self.rows, self.step, self.bad)


def dry_run(options: BuildOptions, rows: Rows, step: Callable[[], None] = lambda: None) -> DryRun:
    """What the ledger of the options knows already costs nothing. Raises BadConfig, BadData."""
    counted = _Counted(Plan(options), rows, step)
    endpoint = options.endpoint
    path = Path(options.ledger) if options.ledger else None
    if path is None or not path.exists():
        made = estimate(counted.questions(), endpoint)
    else:
        with Ledger(path) as ledger:
            made = estimate(counted.questions(), endpoint, ledger)
    return DryRun(made, len(rows), counted.bad)
