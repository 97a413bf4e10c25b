"""What a build would take: all questions are made and none is put.

Which translations will be translated back, and how long they are, shows only when they are there. Of those that the
ledger knows the questions are counted as they are; of the others that share is taken which the sample has, with texts
of a likely length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from training.build.checks import PROMPTS, back_question
from training.build.options import BuildOptions
from training.build.rows import Rows
from training.build.work import Plan, Work
from training.data.report import BadSamples
from training.gates.back_translation import BackTranslation
from training.gates.gate import Gate
from training.gates.inspection import pure_gates
from training.llm.asker import Estimate, estimate, recalled
from training.llm.endpoint import Endpoint
from training.llm.ledger import Ledger
from training.llm.question import Answer, Failure, Question
from training.llm.tokens import likely_prompt, prompt_at_most


@dataclass(frozen=True)
class DryRun:
    """`bad` counts the rows and what is wrong with them. Tokens are an estimate: nobody but the server counts them.

    `back` is what translating back takes beyond `estimate`, likely: not even its questions are known.
    """

    estimate: Estimate
    back: Estimate
    rows: int
    bad: BadSamples


def dry_run(options: BuildOptions, rows: Rows, step: Callable[[], None] = lambda: None) -> DryRun:
    """What the ledger of the options knows already costs nothing. Raises BadConfig, BadData."""
    path = Path(options.ledger) if options.ledger else None
    with ExitStack() as open_:
        ledger = open_.enter_context(Ledger(path)) if path is not None and path.exists() else None
        counted = _Counted(Plan(options), rows, step, options.endpoint, ledger)
        made = estimate(counted.questions(), options.endpoint, ledger)
    return DryRun(made, counted.likely_back(), len(rows), counted.bad)


@dataclass
class _Counted:
    """Bad rows are counted here and stop nothing: a dry run is there to show them."""

    plan: Plan
    rows: Rows
    step: Callable[[], None]
    endpoint: Endpoint
    ledger: Ledger | None
    bad: BadSamples = field(default_factory=lambda: BadSamples(1.0))
    # Of all translations that are not there yet: how many, tokens asked likely and at most, tokens answered at most.
    later: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    gates: tuple[Gate, ...] = field(default_factory=lambda: pure_gates(prompts=PROMPTS))

    @property
    def back(self) -> BackTranslation:
        return BackTranslation(_nobody, self.plan.options.gates.back_translation)

    def questions(self) -> Iterator[Question]:
        """Those that are known."""
        for row in self.rows.read(self.bad, self.step):
            for work in self.plan.works(row):
                yield work.question
                if work.step == "translate" and self.back.share:
                    yield from self._back(work)

    def likely_back(self) -> Estimate:
        requests, *tokens = (round(self.back.share * number) for number in self.later)
        prompt, most, answered = tokens
        dollars = self.endpoint.price.dollars
        return Estimate(requests, 0, prompt, answered, dollars(prompt, answered), dollars(most, answered))

    def _back(self, work: Work) -> Iterator[Question]:
        outcome = recalled(work.question, self.endpoint, self.ledger) if self.ledger is not None else None
        if isinstance(outcome, Answer):
            asked = (back_question(self.back, self.gates, made.row) for made in work.read(outcome.value))
            yield from (question for question in asked if question is not None)
        elif outcome is None:
            for question in map(self.back.likely, work.lost):
                tokens = likely_prompt(question, self.endpoint), prompt_at_most(question, self.endpoint)
                more = (1, *tokens, question.max_tokens)
                self.later = [number + one for number, one in zip(self.later, more, strict=True)]


async def _nobody(_: Question) -> Answer | Failure:
    raise AssertionError("a dry run asks nobody")
