"""A contest: every model answers every question, then the judge sees the answers in pairs, each pair in both orders.

All that is asked goes through one ledger, so a contest that is interrupted goes on where it was, and one with one more
model asks only what is new: the new model's answers, and the pairs it is in.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import combinations

from training.errors import BadData, EndpointGone, TrainingError
from training.leaderboard.asked import Asked
from training.leaderboard.contestant import Contestant, Said
from training.leaderboard.judge import Judging, Pair, verdict_of
from training.llm.asker import Asker, recalled
from training.llm.endpoint import Endpoint
from training.llm.estimate import Estimate, estimate
from training.llm.ledger import Ledger
from training.llm.question import Answer, Failure, Question

Advance = Callable[[str, int], None]
Answers = dict[str, dict[str, Said]]
Order = tuple[str, str, str, bool]
JUDGE = "judge"
LONG = "字"


@dataclass(frozen=True)
class Contest:
    """`pairs` a question are judged, None all of them. An answer has at most `max_tokens`."""

    asked: Sequence[Asked]
    contestants: Sequence[Contestant]
    judge: Endpoint
    judging: Judging = field(default_factory=Judging)
    max_tokens: int = 512
    pairs: int | None = None

    def meetings(self, asked: Asked, answers: Answers) -> list[tuple[str, str]]:
        """Who meets on a question: of those who were asked it, as many pairs as are wanted, drawn by its digest."""
        there = [one.name for one in self.contestants if asked.key in answers[one.name]]
        drawn = sorted(combinations(sorted(there), 2), key=lambda pair: _drawn(asked.key, *pair))
        return drawn if self.pairs is None else drawn[: self.pairs]

    def questions(self) -> Iterator[tuple[str, Question]]:
        """As every model is asked, with the question's key. Raises BadData for a picture that cannot be read."""
        for asked in self.asked:
            content = [*asked.pictures(), {"type": "text", "text": asked.text}]
            yield asked.key, Question(({"role": "user", "content": content},), max_tokens=self.max_tokens)


@dataclass(frozen=True)
class Judged:
    """The pairs that have a verdict, and for each that has none why the judge gave none."""

    pairs: list[Pair] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)


async def answered(contest: Contest, ledger: Ledger, budget: float | None, advance: Advance) -> Answers:
    """By model and question; all models are asked at once. Raises what `Asker.ask` raises, and BadData."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = {
                one.name: group.create_task(_answers(contest, one, ledger, budget, advance))
                for one in contest.contestants
            }
    except* TrainingError as errors:
        raise errors.exceptions[0] from None
    return {name: task.result() for name, task in tasks.items()}


async def judged(contest: Contest, answers: Answers, ledger: Ledger, budget: float | None, advance: Advance) -> Judged:
    """Every pair. Raises what `Asker.ask` raises."""
    found = Judged()
    waiting: dict[tuple[str, str, str], Answer | Failure] = {}
    async with (
        Asker(contest.judge, ledger, budget) as asker,
        aclosing(asker.ask_all(_orders(contest, answers, found, advance))) as verdicts,
    ):
        async for (*names, swapped), known in verdicts:
            advance(JUDGE, 1)
            _raise_if_gone(contest.judge.model, known)
            pair = names[0], names[1], names[2]
            if (other := waiting.pop(pair, None)) is None:
                waiting[pair] = known
            else:
                _decide(found, pair, *((other, known) if swapped else (known, other)))
    found.pairs.sort(key=lambda pair: (pair.key, pair.one, pair.two))
    return found


def costs(contest: Contest, ledger: Ledger) -> dict[str, Estimate]:
    """By model, and of the judge: what is still to be asked. Answers that are not known yet count at their longest."""
    found, answers = {}, {}
    for one in contest.contestants:
        said = dict(one.ready)
        if one.endpoint is not None:
            found[one.name] = estimate((question for _, question in contest.questions()), one.endpoint, ledger)
            for key, question in contest.questions():
                known = recalled(question, one.endpoint, ledger)
                said[key] = Said.of(known) if known else Said(f"{one.name} {LONG * contest.max_tokens}")
        answers[one.name] = said
    orders = _orders(contest, answers, Judged(), lambda *_: None)
    found[JUDGE] = estimate((question for _, question in orders), contest.judge, ledger)
    return found


async def _answers(
    contest: Contest, one: Contestant, ledger: Ledger, budget: float | None, advance: Advance
) -> dict[str, Said]:
    if one.endpoint is None:
        found = {asked.key: one.ready[asked.key] for asked in contest.asked if asked.key in one.ready}
        if not found:
            raise BadData(f"{one.name}: answers none of the questions; are the ids the same?")
        return found
    said: dict[str, Said] = {}
    async with (
        Asker(one.endpoint, ledger, budget) as asker,
        aclosing(asker.ask_all(contest.questions())) as answers,
    ):
        async for key, known in answers:
            _raise_if_gone(one.name, known)
            said[key] = Said.of(known)
            advance(one.name, 1)
    return said


def _orders(contest: Contest, answers: Answers, found: Judged, advance: Advance) -> Iterator[tuple[Order, Question]]:
    """What the judge is asked. What needs no judge goes into `found`: equal answers tie, none loses against any."""
    for asked in contest.asked:
        for one, two in contest.meetings(asked, answers):
            first, second = answers[one][asked.key], answers[two][asked.key]
            if first.failed or second.failed or first.text == second.text:
                won = 0.5 + 0.5 * (bool(second.failed) - bool(first.failed))
                found.pairs.append(Pair(asked.key, one, two, settled=won))
                advance(JUDGE, 2)
                continue
            yield (asked.key, one, two, False), contest.judging.question(asked, first.text, second.text)
            yield (asked.key, one, two, True), contest.judging.question(asked, second.text, first.text)


def _decide(found: Judged, names: tuple[str, str, str], straight: Answer | Failure, swapped: Answer | Failure) -> None:
    if isinstance(straight, Answer) and isinstance(swapped, Answer):
        reasons = straight.value["reason"], swapped.value["reason"]
        found.pairs.append(Pair(*names, (verdict_of(straight), verdict_of(swapped)), reasons=reasons))
    else:
        found.failed.extend([known for known in (straight, swapped) if isinstance(known, Failure)][:1])


def _raise_if_gone(name: str, known: Answer | Failure) -> None:
    """A verdict must not depend on the weather: the same command goes on when the server is well."""
    if isinstance(known, Failure) and known.reason == "unavailable":
        raise EndpointGone(f"{name}: {known.detail}")


def _drawn(key: str, one: str, two: str) -> bytes:
    return hashlib.sha256(json.dumps([key, one, two]).encode()).digest()
