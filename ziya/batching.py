"""Gather requests into batches, run each batch on one thread, answer each request its own.

An idle batcher dispatches at once; while a batch runs, what arrives meanwhile forms the next one, so
batches grow exactly when there is load. What is `announced` (an image that is being decoded) is waited
for, though never longer than the batch itself will take, nor `max_company`: pictures that come together
then go through the stages together, where one that went ahead would have its answer written at the cost
of all others. `max_wait` lets a batch wait for company that nobody has announced. The queue is bounded:
what does not fit is refused, not delayed. Before each dispatch the requests whose time is over or whose
caller has gone are dropped and counted. A batch that fails as a whole is run again item by item, so that
a poisoned item fails alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ziya import tracing
from ziya.errors import DeadlineExceeded, Internal, Overloaded, Unavailable
from ziya.telemetry import Metrics, traceparent

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
LoadedT = TypeVar("LoadedT")
log = logging.getLogger(__name__)

# The first batches of a process are slow: what they took is no measure of what is worth a wait.
COMPANY_SECONDS = 0.05
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Timed(Generic[ResultT]):
    """A result, the seconds its request waited for a batch, and the seconds its batch ran."""

    value: ResultT
    queue_seconds: float
    compute_seconds: float


@dataclass(eq=False, slots=True)
class _Request(Generic[ItemT, ResultT]):
    item: ItemT
    deadline: float | None  # unix seconds
    answer: asyncio.Future[Timed[ResultT]]
    arrived: float = field(default_factory=time.perf_counter)
    around: str = field(default_factory=traceparent.get)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass(eq=False, slots=True)
class _Announcement:
    """One of `others`; `changed` wakes the batcher. Ending it again does nothing."""

    others: set[_Announcement]
    changed: asyncio.Event

    def end(self) -> None:
        self.others.discard(self)
        self.changed.set()


_ANNOUNCEMENT: ContextVar[_Announcement | None] = ContextVar("announcement", default=None)


class _Counts:
    """The batcher's metrics: `ziya_<service>_<name>_…`."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        dropped = metrics.counter(f"{name}_dropped", "Requests that never ran, by reason", ["reason"])
        self.expired, self.cancelled, self.full = map(dropped.labels, ("expired", "cancelled", "full"))
        self.size = metrics.histogram(f"{name}_size", "Items in a batch", buckets=BATCH_SIZES)
        self.queued = metrics.gauge(f"{name}_queued", "Requests waiting for a batch")
        self.queue_seconds = metrics.histogram(f"{name}_queue_seconds", "Seconds from arrival to dispatch")
        self.compute_seconds = metrics.histogram(f"{name}_compute_seconds", "Seconds that a batch ran")
        self.isolated = metrics.counter(f"{name}_isolated", "Batches that failed as a whole and ran again one by one")
        self.backlog_seconds = metrics.gauge(
            f"{name}_backlog_seconds", "Seconds that the waiting requests will take, as measured of those before"
        )
        self.seconds_each = 0.0

    def waiting(self, requests: int) -> None:
        self.queued.set(requests)
        self.backlog_seconds.set(requests * self.seconds_each)

    def ran(self, requests: int, seconds: float) -> None:
        """Of the seconds that one request takes an average is kept, in which the latest batch counts a fifth."""
        self.compute_seconds.observe(seconds)
        each = seconds / requests
        self.seconds_each += (each - self.seconds_each) * (0.2 if self.seconds_each else 1.0)


class Batcher(Generic[ItemT, ResultT]):
    """Runs `run` on lists of at most `max_batch` items; give it one to each model. Use inside one event loop.

    `run` answers one result or one exception an item, in order. `max_wait` and `max_company` are in
    seconds. At most `max_queue` requests wait; the batch that is running does not count.
    """

    def __init__(
        self,
        run: Callable[[list[ItemT]], Sequence[ResultT | Exception]],
        *,
        max_batch: int,
        max_wait: float = 0.0,
        max_company: float = COMPANY_SECONDS,
        max_queue: int,
        metrics: Metrics | None = None,
        name: str = "batch",
    ) -> None:
        self._run, self._max_batch, self._max_queue = run, max_batch, max_queue
        self._max_wait, self._max_company = max_wait, max_company
        metrics = metrics if metrics is not None else Metrics("batcher")
        self._counts, self._service = _Counts(metrics, name), metrics.service
        self._queue: deque[_Request[ItemT, ResultT]] = deque()
        self._announcements: set[_Announcement] = set()
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    async def submit(self, item: ItemT, *, deadline: float | None = None) -> Timed[ResultT]:
        """The item's result. `deadline` is in unix seconds.

        Raises Overloaded when the queue is full, DeadlineExceeded when the item's time ended before
        its batch began, Unavailable after `close`, and what `run` answered for this item.
        """
        if self._closed:
            raise Unavailable("this process is stopping")
        if len(self._queue) >= self._max_queue:
            self._forget_gone()
        if len(self._queue) >= self._max_queue:
            self._counts.full.inc()
            raise Overloaded(f"{self._max_queue} requests are waiting already")
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        request = _Request[ItemT, ResultT](item, deadline, asyncio.get_running_loop().create_future())
        self._queue.append(request)
        self._counts.waiting(len(self._queue))
        self._arrival.set()
        if announcement := _ANNOUNCEMENT.get():
            announcement.end()
        return await request.answer

    @contextmanager
    def announced(self) -> Iterator[None]:
        """Around what leads to a `submit`, in this task or one that it starts: batches that could begin wait for it.

        It ends with the first `submit`, or with the block, where nothing is to be submitted after all.
        """
        announcement = _Announcement(self._announcements, self._arrival)
        self._announcements.add(announcement)
        token = _ANNOUNCEMENT.set(announcement)
        try:
            yield
        finally:
            _ANNOUNCEMENT.reset(token)
            announcement.end()

    async def on_thread(self, work: Callable[[], LoadedT]) -> LoadedT:
        """Runs `work` on the thread of the batches.

        A model that is loaded there computes with one team of OpenMP threads. The team of another thread that once
        computed would count for ever, and with more threads than processors libgomp lets none of them spin from one
        operator to the next.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    @property
    def queued(self) -> int:
        """Requests that wait for a batch."""
        return len(self._queue)

    async def close(self) -> None:
        """Lets the running batch end, and refuses what is queued with Unavailable."""
        self._closed = True
        self._arrival.set()
        if self._worker is not None:
            await self._worker
        self._thread.shutdown(wait=False)

    async def _work(self) -> None:
        while not self._closed:
            await self._gather()
            if batch := self._take():
                await self._dispatch(batch)
        for request in self._queue:
            request.fail(Unavailable("this process is stopping"))
        self._queue.clear()

    async def _gather(self) -> None:
        """Returns when there is something to run: at once with a full batch, else when the wait for company is over."""
        while not self._queue and not self._closed:
            self._arrival.clear()
            await self._arrival.wait()
        while len(self._queue) < self._max_batch and not self._closed and (left := self._patience()) > 0:
            self._arrival.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._arrival.wait()

    def _patience(self) -> float:
        """Seconds that a batch of those in the queue may wait still."""
        if not self._queue:
            return 0.0
        batch = self._counts.seconds_each * len(self._queue)
        company = min(batch, self._max_company) if self._announcements else 0.0
        return self._queue[0].arrived + max(self._max_wait, company) - time.perf_counter()

    def _take(self) -> list[_Request[ItemT, ResultT]]:
        self._forget_gone()
        batch = [self._queue.popleft() for _ in range(min(self._max_batch, len(self._queue)))]
        self._counts.waiting(len(self._queue))
        return batch

    def _forget_gone(self) -> None:
        """Drops the requests that nobody waits for any more, wherever they stand in the queue."""
        now, kept = time.time(), deque[_Request[ItemT, ResultT]]()
        for request in self._queue:
            if request.answer.done():
                self._counts.cancelled.inc()
            elif request.deadline is not None and request.deadline <= now:
                self._counts.expired.inc()
                request.fail(DeadlineExceeded("the request's time ended while it waited for a batch"))
            else:
                kept.append(request)
        self._queue = kept

    async def _dispatch(self, batch: list[_Request[ItemT, ResultT]]) -> None:
        started = time.perf_counter()
        self._counts.size.observe(len(batch))
        items = [request.item for request in batch]
        results, seconds = await asyncio.get_running_loop().run_in_executor(self._thread, self._attempt, items)
        self._counts.ran(len(batch), seconds)
        self._trace(batch, started, seconds)
        for request, result in zip(batch, results, strict=True):
            queued = started - request.arrived
            self._counts.queue_seconds.observe(queued)
            if isinstance(result, Exception):
                request.fail(result)
            elif not request.answer.done():
                request.answer.set_result(Timed(result, queued, seconds))

    def _trace(self, batch: list[_Request[ItemT, ResultT]], started: float, seconds: float) -> None:
        """Each request's queue and batch are in its own trace; what ran once is in the first one's, linked to all."""
        if not tracing.taken([request.around for request in batch]):
            return
        ended, size, spans = time.perf_counter(), {"ziya.batch.size": len(batch)}, []
        for request in batch:
            tracing.record(f"{self._service}.queue", request.arrived, started, parent=request.around)
            spans.append(tracing.record(f"{self._service}.batch", started, ended, size, parent=request.around))
        taken = tracing.taken(spans)
        tracing.record(f"{self._service}.forward", ended - seconds, ended, size, parent=taken[0], links=taken)

    def _attempt(self, items: list[ItemT]) -> tuple[list[ResultT | Exception], float]:
        """Runs on the batcher's thread: results in order, and the seconds it took."""
        started = time.perf_counter()
        results = self._try(items)
        if results is None:
            self._counts.isolated.inc()
            results = [self._alone(item) for item in items]
        return results, time.perf_counter() - started

    def _try(self, items: list[ItemT]) -> list[ResultT | Exception] | None:
        """The results of a batch; None when it failed as a whole and holds more than one item."""
        try:
            results = list(self._run(items))
        except Exception as error:  # noqa: BLE001 (a worker loop: the caller gets the error)
            if len(items) == 1:
                return [error]
            log.warning("a batch failed and runs again one by one", extra={"items": len(items), "error": repr(error)})
            return None
        if len(results) != len(items):
            return [Internal(f"the model answered {len(results)} results for {len(items)} items")] * len(items)
        return results

    def _alone(self, item: ItemT) -> ResultT | Exception:
        results = self._try([item])
        if results is None:
            raise AssertionError("a batch of one always has a result")
        return results[0]
