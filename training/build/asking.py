"""The first half of a piece: puts all questions of its rows, and leaves the answers in the ledger.

Nothing is kept here but numbers. What was answered before costs a look into the ledger, so a run that was killed goes
through its rows again and asks what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

from training.build.bar import Bar
from training.build.checks import Checks
from training.build.rows import Rows
from training.build.work import Plan
from training.data.report import BadSamples
from training.errors import Stopped, TrainingError
from training.llm.asker import Asker
from training.llm.question import Answer, Failure, Question
from training.stopping import StopSignal

_CHECKED_EACH = 256
# A question that the server could not answer this time is put again after all others.
_ROUNDS = 3


@dataclass
class Asking:
    """Of one piece. `run` raises what Asker raises, BadData when too many rows are bad, Stopped when asked to stop."""

    plan: Plan
    rows: Rows
    asker: Asker
    checks: Checks
    bar: Bar
    stop: StopSignal

    async def run(self) -> None:
        """All questions. Raises TrainingError when too many of them have no answer at the end."""
        await self._until_answered("asking", lambda: questions(self.plan, self.rows, self.bar.step))
        if self.checks.back is not None:
            await self._until_answered("asking back", self._back)

    async def _until_answered(self, phase: str, made: Callable[[], Iterator[Question]]) -> None:
        for _ in range(_ROUNDS):
            self.bar.begin(phase, len(self.rows))
            asked, unanswered = await self._round(made())
            if not unanswered:
                return
        if unanswered > self.plan.options.unanswered_share * asked:
            raise TrainingError(
                f"{unanswered} of {asked} questions could not be answered by {self.asker.endpoint.base_url}; the "
                "others are in the ledger, and the same command asks what is missing"
            )

    async def _round(self, made: Iterator[Question]) -> tuple[int, int]:
        """How many were put, and how many of them nobody answered."""
        asked = unanswered = 0
        async with aclosing(self.asker.ask_all(self._until_stopped(made))) as outcomes:
            async for question, outcome in outcomes:
                asked += 1
                failed = isinstance(outcome, Failure)
                # What the ledger does not keep would be missing when the piece is written.
                unanswered += failed and self.asker.recall(question) is None
                cached = isinstance(outcome, Answer) and outcome.cached
                self.bar.answered(cached=cached, failed=failed, spent=self.asker.ledger.spent)
        return asked, unanswered

    def _until_stopped(self, made: Iterator[Question]) -> Iterator[tuple[Question, Question]]:
        for question in made:
            if self.stop.requested:
                raise Stopped("stopped; what was answered is kept, and the same command goes on from there")
            yield question, question

    def _back(self) -> Iterator[Question]:
        """Of the sample of translations that are translated back."""
        for row in self.rows.read(BadSamples(1.0), self.bar.step):
            for work in self.plan.works(row):
                outcome = self.asker.recall(work.question) if work.step == "translate" else None
                for made in work.read(outcome.value) if isinstance(outcome, Answer) else ():
                    question = self.checks.back_question(made.row)
                    if question is not None:
                        yield question


def questions(plan: Plan, rows: Rows, step: Callable[[], None] = lambda: None) -> Iterator[Question]:
    """Of all rows in order. Raises BadData when too many rows cannot be used: before they are paid for."""
    bad = BadSamples(plan.options.bad_share)
    for number, row in enumerate(rows.read(bad, step)):
        if number % _CHECKED_EACH == 0:
            bad.check()
        for work in plan.works(row):
            yield work.question
    bad.check()
