"""Many questions through one window: so many are held at once, and whoever is answered first comes out first.

A task of its own reads the questions, so that they may depend on answers that came out before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Generic, TypeVar

from training.errors import BudgetSpent
from training.llm.question import Answer, Failure, Question

DRAIN_SECONDS = 20.0
K = TypeVar("K")
V = TypeVar("V")
Known = Answer | Failure
Questions = Iterable[tuple[K, Question]] | AsyncIterable[tuple[K, Question]]


async def many(
    questions: Questions[K],
    ask: Callable[[Question], Awaitable[Known]],
    recall: Callable[[Question], Known | None],
    width: int,
) -> AsyncGenerator[tuple[K, Known], None]:
    """Each key with what is known at the end, at most `width` on the way. `recall` answers what need not be asked.

    BudgetSpent is raised when all that is on the way is out, what `questions` raises after `DRAIN_SECONDS` at the
    latest (it may be a signal to stop), and any other error at once.
    """
    window = _Window[K](ask, recall, width)
    try:
        reading = window.read(questions)
        while (found := await window.next()) is not None:
            key, known = found
            yield key, known
        if reading.done() and not reading.cancelled():
            reading.result()
        if window.spent:
            raise window.spent
    finally:
        await window.close()


class _Window(Generic[K]):
    def __init__(
        self, ask: Callable[[Question], Awaitable[Known]], recall: Callable[[Question], Known | None], width: int
    ) -> None:
        self.spent: BudgetSpent | None = None
        self._ask, self._recall = ask, recall
        self._room = asyncio.Semaphore(width)
        self._inside = 0
        self._out: asyncio.Queue[tuple[K, Known | asyncio.Task[Known]] | None] = asyncio.Queue()
        self._asking: set[asyncio.Task[Known]] = set()
        self._reading: asyncio.Task[None] | None = None
        self._deadline: float | None = None

    def read(self, questions: Questions[K]) -> asyncio.Task[None]:
        self._reading = asyncio.create_task(self._read(questions))
        self._reading.add_done_callback(self._end)
        return self._reading

    async def next(self) -> tuple[K, Known] | None:
        """None when all are out."""
        while True:
            try:
                async with asyncio.timeout_at(self._deadline):
                    found = await self._out.get()
            except TimeoutError:
                return None
            if found is None:
                if not self._inside:
                    return None
                continue
            self._inside -= 1
            self._room.release()
            known = self._result(found[1])
            if self._is_read and not self._inside:
                self._out.put_nowait(None)
            if known is not None:
                return found[0], known

    async def close(self) -> None:
        tasks = [*self._asking, *([self._reading] if self._reading else [])]
        for task in tasks:
            task.cancel()
        # Those that ended meanwhile too, or asyncio would report what failed as never looked at.
        ended = [found[1] for found in _waiting(self._out) if found and isinstance(found[1], asyncio.Task)]
        await asyncio.gather(*tasks, *ended, return_exceptions=True)

    def _end(self, reading: asyncio.Task[None]) -> None:
        if not reading.cancelled() and reading.exception():
            self._deadline = asyncio.get_running_loop().time() + DRAIN_SECONDS
        self._out.put_nowait(None)  # wakes whoever waits for the next one, which will not come

    @property
    def _is_read(self) -> bool:
        return self._reading is not None and self._reading.done()

    def _result(self, known: Known | asyncio.Task[Known]) -> Known | None:
        if not isinstance(known, asyncio.Task):
            return known
        try:
            return known.result()
        except BudgetSpent as error:
            self.spent = self.spent or error
            if self._reading:
                self._reading.cancel()
            return None

    async def _read(self, questions: Questions[K]) -> None:
        async for key, question in _each(questions):
            await self._room.acquire()
            self._inside += 1
            known = self._recall(question)
            if known is not None:
                self._out.put_nowait((key, known))
            else:
                self._start(key, question)

    def _start(self, key: K, question: Question) -> None:
        task = asyncio.ensure_future(self._ask(question))
        self._asking.add(task)

        def finish(done: asyncio.Task[Known]) -> None:
            self._asking.discard(done)
            self._out.put_nowait((key, done))

        task.add_done_callback(finish)


def _waiting(queue: asyncio.Queue[V]) -> Iterator[V]:
    while not queue.empty():
        yield queue.get_nowait()


async def _each(questions: Questions[K]) -> AsyncIterator[tuple[K, Question]]:
    if isinstance(questions, AsyncIterable):
        async for pair in questions:
            yield pair
    else:
        for pair in questions:
            yield pair
