"""Sends the load and writes down what came of it.

Closed loop: so many callers, each sends its next request when its last one has ended. Open loop: requests are sent at
their times, however many are still on their way; with `most` in flight a request waits for a place, and that wait
counts as part of its latency. Whatever happens to a request is written on its `Answer`; leaving by cancellation keeps
all of them. Only a request that its caller reports complete, within its time, is not a failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from cli.load.request import Answer, Caller, Clock, Failed, Request
from cli.load.workload import Workload
from ziya.heap import hardly_collected

PAUSE_SECONDS = 0.1


@dataclass(frozen=True)
class Bounds:
    """No request starts after `requests` of them or after `seconds`, whichever comes first; one of them is given.

    `timeout` seconds after it was sent a request without a complete answer has failed.
    """

    requests: int | None
    seconds: float | None
    timeout: float

    def __post_init__(self) -> None:
        if self.requests is None and self.seconds is None:
            raise ValueError("a load without a bound")

    def reached(self, started: int, seconds: float) -> bool:
        """Whether no further request may start, after so many and so many seconds."""
        return (self.requests is not None and started >= self.requests) or (
            self.seconds is not None and seconds >= self.seconds
        )


class Run:
    """One load, from its first request on. `clock` gives seconds from any moment, and `sleep` waits by it."""

    def __init__(
        self,
        caller: Caller,
        workload: Workload,
        bounds: Bounds,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._caller, self._workload, self._bounds = caller, workload, bounds
        self._requests = iter(workload)
        self._clock, self._sleep = clock, sleep
        self.answers: list[Answer] = []
        self.in_flight = 0
        self.failed = 0

    async def closed(self, concurrency: int) -> None:
        """`concurrency` callers, each with one request at a time."""
        with hardly_collected():
            async with asyncio.TaskGroup() as callers:
                for _ in range(concurrency):
                    callers.create_task(self._one_after_another())

    async def open(self, times: Iterable[float], most: int | None = None) -> None:
        """Requests at these seconds after the start of the clock, at most `most` of them in flight."""
        places = asyncio.Semaphore(most) if most else None
        with hardly_collected():
            async with asyncio.TaskGroup() as running:
                await self._at_their_times(times, running, places)

    async def _at_their_times(
        self, times: Iterable[float], running: asyncio.TaskGroup, places: asyncio.Semaphore | None
    ) -> None:
        for at in times:
            if self._bounds.reached(len(self.answers), at):
                return
            request = next(self._requests)  # made before its time, so that the making delays nothing
            while (early := at - self._clock()) > 0:
                await self._sleep(early)
            running.create_task(self._in_place(self._planned(request, at), places))
            await asyncio.sleep(0)  # it is sent before the next one is made

    async def _one_after_another(self) -> None:
        while not self._bounds.reached(len(self.answers), self._clock()):
            request = next(self._requests)
            answer = self._planned(request, self._clock())
            await self._send(answer)
            if answer.failure is not None:
                await self._sleep(PAUSE_SECONDS)  # who refuses at once is not asked ten thousand times a second

    async def _in_place(self, answer: Answer, places: asyncio.Semaphore | None) -> None:
        if places is None:
            await self._send(answer)
            return
        async with places:
            await self._send(answer)

    def _planned(self, request: Request, at: float) -> Answer:
        answer = Answer(request, at)
        self.answers.append(answer)
        return answer

    async def _send(self, answer: Answer) -> None:
        answer.sent = self._clock()
        self.in_flight += 1
        try:
            async with asyncio.timeout(self._bounds.timeout):
                await self._caller.ask(answer.request, answer)
        except Failed as failure:
            answer.failure = failure
        except TimeoutError:
            answer.failure = Failed("timeout", f"no complete answer within {self._bounds.timeout:g} s")
        else:
            self._workload.goes_on(answer.request, answer.text)
        if answer.ended is None:
            answer.ended = self._clock()
        self.in_flight -= 1
        self.failed += answer.failure is not None
