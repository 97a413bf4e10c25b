"""Several engines, all loaded, asked in turns: whatever the machine does meets each of them alike.

In each turn an engine first serves a round that does not count, so that it is as awake as one that serves all day.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.quiet import Moment


class Contestant(Protocol):
    """Something that can be asked for a round: a child process with an engine, or a whole stack."""

    @property
    def name(self) -> str: ...

    @property
    def group(self) -> str:
        """Of its processes, which it may have in common with another."""

    def round(self, requests: int) -> dict[str, Any]:
        """Serves so many new requests at once. Has `seconds`, `first_tokens` and `tokens` (answering.Round)."""

    def cpu_seconds(self) -> float:
        """Processor time of its processes so far."""


@dataclass(frozen=True)
class Turn:
    """One counted round: what the engine answered, and who else used how much of a processor meanwhile."""

    engine: str
    requests: int
    answer: dict[str, Any]
    others: float
    idlers: float

    @property
    def tokens_per_second(self) -> float:
        return float(self.answer["tokens"] / self.answer["seconds"])

    @property
    def first_token(self) -> float:
        """Seconds to the first token, median of the requests."""
        return float(statistics.median(self.answer["first_tokens"]))


@dataclass(frozen=True)
class Turns:
    """All counted rounds, in order."""

    all: tuple[Turn, ...]

    def of(self, engine: str, requests: int) -> list[Turn]:
        return [turn for turn in self.all if (turn.engine, turn.requests) == (engine, requests)]

    def median(self, engine: str, requests: int, value: Callable[[Turn], float]) -> float:
        return statistics.median(map(value, self.of(engine, requests)))

    def ratios(self, engine: str, other: str, requests: int, value: Callable[[Turn], float]) -> list[float]:
        """Of rounds with the same number: `engine` over `other`."""
        pairs = zip(self.of(engine, requests), self.of(other, requests), strict=True)
        return [value(one) / value(two) for one, two in pairs]


def alternate(
    contestants: Sequence[Contestant], requests: Sequence[int], rounds: int, say: Callable[[str], None]
) -> Turns:
    """`rounds` counted rounds of each contestant for each number of requests, each time in another `order`."""
    turns = []
    for number in range(rounds):
        for count in requests:
            for index in order(len(contestants), number):
                turn = _turn(contestants[index], contestants, count)
                turns.append(turn)
                say(f"round {number + 1} of {rounds}, {count} at once, {_line(turn)}")
    return Turns(tuple(turns))


def order(size: int, number: int) -> list[int]:
    """The order of `size` contestants in the round with this number, which begins with `number` modulo `size`.

    In as many rounds as there are contestants (twice as many, where they are odd) each comes after each other equally
    often, since whoever follows one that has emptied the processor's caches is slower (E. J. Williams, Experimental
    designs balanced for the estimation of residual effects of treatments, 1949).
    """
    zigzag = [-(place // 2) if place % 2 == 0 else (place + 1) // 2 for place in range(size)]
    mirror = -1 if size % 2 and number // size % 2 else 1
    return [(number + mirror * step) % size for step in zigzag]


def _turn(one: Contestant, contestants: Sequence[Contestant], requests: int) -> Turn:
    one.round(requests)
    before = Moment.now(contestants)
    answer = one.round(requests)
    after = Moment.now(contestants)
    return Turn(one.name, requests, answer, after.others_since(before), after.idlers_since(before, one.group))


def _line(turn: Turn) -> str:
    known = f"{turn.tokens_per_second:.0f} tokens/s" if "tokens" in turn.answer else str(turn.answer)
    return f"{turn.engine}: {known}, others {turn.others:.0%}, idle engines {turn.idlers:.1%} of a processor"
