"""A language model's replica: continuous batching as services/llama/engine does it, with measured seconds for a step.

A step decodes one token of each running request and computes up to `prefill_tokens` of prompts beside. While nobody
comes and nobody ends, steps are alike, and many are taken in one leap; who comes meanwhile is taken up at the border of
the step that is under way. What an answer's length does to attention is in the measured step, for answers as measured.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from cli.capacity.clock import Clock
from cli.capacity.request import Request
from cli.capacity.stage_times import LlamaTimes


@dataclass(frozen=True)
class EngineLimits:
    """`slots` requests run at once; `waiting` more may be inside; `prefill_tokens` of prompts in one step."""

    slots: int = 32
    waiting: int = 256
    prefill_tokens: int = 256


class Told(Protocol):
    """Who hears of a request: its first token, its end, or that its time was over before it began."""

    def first_token(self, request: Request) -> None: ...

    def finished(self, request: Request) -> None: ...

    def expired(self, request: Request) -> None: ...


@dataclass(eq=False, slots=True)
class _Sequence:
    request: Request
    told: Told
    since: float
    prompt_left: int


class Engine:
    """`open` counts requests inside, those that wait for visual tokens among them; its owner keeps it."""

    def __init__(self, clock: Clock, times: LlamaTimes, limits: EngineLimits) -> None:
        self._clock, self._times, self._limits = clock, times, limits
        self._waiting: deque[_Sequence] = deque()
        self._decoding: list[tuple[int, int, _Sequence]] = []  # by the number of the step that ends them
        self._order = itertools.count()
        self._partial: _Sequence | None = None  # whose prompt is not complete
        self._steps = 0
        self._leap: tuple[int, float, float, int] | None = None  # number, start, seconds a step, steps
        self._stepping = False
        self._leaps = 0
        self.open = 0
        self.busy_seconds = 0.0
        self.retired = False

    @property
    def running(self) -> int:
        return len(self._decoding) + (self._partial is not None)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        return self.open >= self._limits.slots + self._limits.waiting

    @property
    def kv_use(self) -> float:
        return self.running / self._limits.slots

    def submit(self, request: Request, told: Told) -> None:
        """Its visual tokens are there."""
        self._waiting.append(_Sequence(request, told, self._clock.now, request.prompt_tokens))
        if self._leap is not None:
            self._cut_short()
        elif not self._stepping:
            self._stepping = True
            self._clock.after(0.0, self._begin)  # with all that comes at this moment

    def _cut_short(self) -> None:
        assert self._leap is not None
        _, started, seconds, steps = self._leap
        under_way = int((self._clock.now - started) / seconds) + 1
        if len(self._decoding) < self._limits.slots and under_way < steps:
            self._go(started, seconds, under_way)

    def _begin(self) -> None:
        self._stepping = False
        prefills = self._choose()
        decoding = len(self._decoding)
        if prefills:
            seconds = self._times.step(decoding, sum(count for _, count in prefills))
            self._stepping = True
            self._clock.after(seconds, partial(self._end, prefills, seconds, 1))
        elif decoding:
            self._go(self._clock.now, self._times.step(decoding, 0), self._decoding[0][0] - self._steps)

    def _go(self, started: float, seconds: float, steps: int) -> None:
        """Leaps over pure decoding; a leap that was planned before is forgotten."""
        self._leaps += 1
        self._leap = (self._leaps, started, seconds, steps)
        self._clock.at(started + seconds * steps, partial(self._landed, self._leaps))

    def _landed(self, number: int) -> None:
        if self._leap is None or self._leap[0] != number:
            return
        _, _, seconds, steps = self._leap
        self._leap, self._stepping = None, True
        self._end([], seconds, steps)

    def _choose(self) -> list[tuple[_Sequence, int]]:
        """Prompts to go on with in this step, each with its tokens. One that is not complete after it stays partial."""
        budget, chosen = self._limits.prefill_tokens, list[tuple[_Sequence, int]]()
        while budget > 0:
            sequence = self._partial or self._admit(len(chosen))
            if sequence is None:
                break
            count = min(budget, sequence.prompt_left)
            budget -= count
            sequence.prompt_left -= count
            chosen.append((sequence, count))
            self._partial = sequence if sequence.prompt_left else None
        return chosen

    def _admit(self, beginning: int) -> _Sequence | None:
        while self._waiting and len(self._decoding) + beginning < self._limits.slots:
            sequence = self._waiting.popleft()
            if sequence.request.deadline > self._clock.now:
                sequence.request.waits["llama"] = self._clock.now - sequence.since
                return sequence
            sequence.told.expired(sequence.request)
        return None

    def _end(self, prefills: list[tuple[_Sequence, int]], seconds: float, steps: int) -> None:
        self._steps += steps
        self.busy_seconds += seconds * steps
        while self._decoding and self._decoding[0][0] <= self._steps:
            _, _, sequence = heapq.heappop(self._decoding)
            sequence.told.finished(sequence.request)
        for sequence, _ in prefills:
            if not sequence.prompt_left:
                self._decode(sequence)
        self._begin()

    def _decode(self, sequence: _Sequence) -> None:
        """Its prompt is complete, which gave the first token."""
        sequence.told.first_token(sequence.request)
        left = sequence.request.arrival.answer_tokens - 1
        if left:
            heapq.heappush(self._decoding, (self._steps + left, next(self._order), sequence))
        else:
            sequence.told.finished(sequence.request)
