"""Batches form under load, one bad item fails alone, nothing dead is computed, and the event loop stays free."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from ziya.batching import Batcher
from ziya.errors import DeadlineExceeded, Internal, Overloaded, Unavailable
from ziya.telemetry import Metrics


class Model:
    """Doubles numbers; runs only while its gate is open, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self._running = threading.Semaphore(0)

    def __call__(self, items: list[int]) -> list[int | Exception]:
        self.batches.append(items)
        self.threads.add(threading.get_ident())
        self._running.release()
        assert self.gate.wait(60)
        if any(item < 0 for item in items):
            raise ValueError("poison")
        return [ArithmeticError("thirteen") if item == 13 else 2 * item for item in items]

    async def running(self) -> None:
        """Returns when the next batch has begun."""
        await asyncio.to_thread(self._running.acquire)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def made(registry: CollectorRegistry, model: Model) -> Callable[..., Any]:
    @asynccontextmanager
    async def make(**options: Any) -> AsyncIterator[Batcher[int, int]]:
        options = {"max_batch": 4, "max_queue": 100} | options
        batcher = Batcher[int, int](model, metrics=Metrics("test", registry), **options)
        try:
            yield batcher
        finally:
            model.gate.set()
            await batcher.close()

    return make


def start(batcher: Batcher[int, int], *items: int, deadline: float | None = None) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(batcher.submit(item, deadline=deadline)) for item in items]


async def values(tasks: list[asyncio.Task[Any]]) -> list[int]:
    return [(await task).value for task in tasks]


async def queued(batcher: Batcher[int, int], number: int) -> None:
    """Returns when `number` requests wait."""
    async with asyncio.timeout(10):
        while batcher.queued != number:
            await asyncio.sleep(0)


async def test_an_idle_batcher_runs_at_once(made: Any, model: Model) -> None:
    async with made() as batcher:
        timed = await batcher.submit(21)
    assert timed.value == 42
    assert timed.queue_seconds >= 0
    assert timed.compute_seconds >= 0
    assert model.batches == [[21]]


async def test_what_arrives_while_a_batch_runs_forms_the_next(made: Any, model: Model) -> None:
    model.gate.clear()
    async with made() as batcher:
        tasks = start(batcher, 1)
        await model.running()
        tasks += start(batcher, 2, 3, 4, 5, 6, 7)
        await queued(batcher, 6)
        model.gate.set()
        assert await values(tasks) == [2, 4, 6, 8, 10, 12, 14]
    assert model.batches == [[1], [2, 3, 4, 5], [6, 7]]


async def test_a_waiting_batch_goes_when_it_is_full(made: Any, model: Model) -> None:
    async with made(max_wait=600.0) as batcher:
        assert await values(start(batcher, 1, 2, 3, 4)) == [2, 4, 6, 8]
    assert model.batches == [[1, 2, 3, 4]]


async def test_a_waiting_batch_goes_when_its_time_is_over(made: Any, model: Model) -> None:
    async with made(max_wait=0.02) as batcher:
        assert await values(start(batcher, 1, 2)) == [2, 4]
    assert model.batches == [[1, 2]]


async def learnt(batcher: Batcher[int, int], model: Model, seconds: float) -> None:
    """The batcher knows now that an item takes so long."""
    model.gate.clear()
    first = asyncio.create_task(batcher.submit(0))
    await model.running()
    await asyncio.sleep(seconds)
    model.gate.set()
    await first


async def test_what_is_announced_is_waited_for(made: Any, model: Model) -> None:
    async with made(max_company=600.0) as batcher:
        await learnt(batcher, model, 1.0)
        made_ready = asyncio.Event()

        async def prepare_and_submit() -> int:
            with batcher.announced():
                await made_ready.wait()
                return (await asyncio.create_task(batcher.submit(2))).value

        late = asyncio.create_task(prepare_and_submit())
        await asyncio.sleep(0)
        early = asyncio.create_task(batcher.submit(1))
        await spin()
        assert model.batches == [[0]]
        made_ready.set()
        assert ((await early).value, await late) == (2, 4)
    assert model.batches == [[0], [1, 2]]


@asynccontextmanager
async def announced(batcher: Batcher[int, int]) -> AsyncIterator[asyncio.Event]:
    """By another request, which is made ready until it hears that it will not come."""
    given_up = asyncio.Event()

    async def prepare() -> None:
        with batcher.announced():
            await given_up.wait()

    other = asyncio.create_task(prepare())
    await asyncio.sleep(0)
    try:
        yield given_up
    finally:
        given_up.set()
        await other


async def spin() -> None:
    """Lets everybody do what can be done at once."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_is_announced_and_does_not_come_holds_nobody_up(made: Any, model: Model) -> None:
    async with made(max_company=600.0) as batcher, asyncio.timeout(60):
        await learnt(batcher, model, 1.0)
        async with announced(batcher) as given_up:
            early = asyncio.create_task(batcher.submit(1))
            await spin()
            assert model.batches == [[0]]
            given_up.set()
            await early
        async with announced(batcher):
            await batcher.submit(2)  # longer than the batch would take: it goes alone
    assert model.batches == [[0], [1], [2]]


async def test_a_full_batch_waits_for_nobody(made: Any, model: Model) -> None:
    async with made(max_batch=2, max_company=600.0) as batcher, asyncio.timeout(60):
        await learnt(batcher, model, 1.0)
        async with announced(batcher):
            some = [asyncio.create_task(batcher.submit(number)) for number in (1, 2)]
            await spin()
            await asyncio.gather(*some, batcher.submit(3))
    assert model.batches == [[0], [1, 2], [3]]


async def test_after_a_slow_beginning_nobody_is_waited_for_long(made: Any, model: Model) -> None:
    async with made(max_company=0.0) as batcher, asyncio.timeout(60):
        await learnt(batcher, model, 1.0)
        async with announced(batcher):
            early = asyncio.create_task(batcher.submit(1))
            await spin()
            await asyncio.gather(early, batcher.submit(2))
    assert model.batches == [[0], [1], [2]]


async def test_one_thread_runs_everything_and_it_is_not_the_event_loops(made: Any, model: Model) -> None:
    async with made() as batcher:
        loader = await batcher.on_thread(threading.get_ident)
        for item in range(3):
            await batcher.submit(item)
    assert model.threads == {loader}
    assert threading.get_ident() not in model.threads


async def test_the_event_loop_goes_on_while_the_model_runs(made: Any, model: Model) -> None:
    model.gate.clear()
    async with made() as batcher:
        (task,) = start(batcher, 1)
        await model.running()
        # The model cannot end before this coroutine has run on: it is this coroutine that lets it.
        assert await asyncio.to_thread(lambda: "the loop works") == "the loop works"
        assert not task.done()
        model.gate.set()
        assert (await task).value == 2


async def test_an_item_with_an_error_of_its_own_fails_alone(made: Any, model: Model) -> None:
    model.gate.clear()
    async with made() as batcher:
        first = start(batcher, 0)
        await model.running()
        tasks = start(batcher, 1, 13, 3)
        await queued(batcher, 3)
        model.gate.set()
        assert await values([*first, tasks[0], tasks[2]]) == [0, 2, 6]
        with pytest.raises(ArithmeticError, match="thirteen"):
            await tasks[1]
    assert model.batches == [[0], [1, 13, 3]]


async def test_a_poisoned_item_fails_alone(made: Any, model: Model, registry: CollectorRegistry) -> None:
    model.gate.clear()
    async with made() as batcher:
        first = start(batcher, 0)
        await model.running()
        tasks = start(batcher, 1, -1, 3)
        await queued(batcher, 3)
        model.gate.set()
        assert await values([*first, tasks[0], tasks[2]]) == [0, 2, 6]
        with pytest.raises(ValueError, match="poison"):
            await tasks[1]
        assert (await batcher.submit(5)).value == 10
    assert model.batches[1:5] == [[1, -1, 3], [1], [-1], [3]]
    assert registry.get_sample_value("ziya_test_batch_isolated_total") == 1


async def test_a_poisoned_item_that_is_alone_runs_once(made: Any, model: Model) -> None:
    async with made() as batcher:
        with pytest.raises(ValueError, match="poison"):
            await batcher.submit(-1)
    assert model.batches == [[-1]]


async def test_a_wrong_number_of_results_is_a_defect_of_ours() -> None:
    batcher = Batcher[int, int](lambda items: [1, 2, 3], max_batch=4, max_queue=4)
    with pytest.raises(Internal, match="3 results for 1 items"):
        await batcher.submit(1)
    await batcher.close()


async def test_expired_work_never_runs(made: Any, model: Model, registry: CollectorRegistry) -> None:
    async with made() as batcher:
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(1, deadline=time.time() - 1)
        assert (await batcher.submit(2, deadline=time.time() + 60)).value == 4
    assert model.batches == [[2]]
    assert registry.get_sample_value("ziya_test_batch_dropped_total", {"reason": "expired"}) == 1


async def test_cancelled_work_never_runs(made: Any, model: Model, registry: CollectorRegistry) -> None:
    model.gate.clear()
    async with made() as batcher:
        tasks = start(batcher, 1)
        await model.running()
        tasks += start(batcher, 2, 3)
        await queued(batcher, 2)
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        model.gate.set()
        assert await values([tasks[0], tasks[2]]) == [2, 6]
    assert model.batches == [[1], [3]]
    assert registry.get_sample_value("ziya_test_batch_dropped_total", {"reason": "cancelled"}) == 1


async def test_cancelling_a_running_item_harms_nobody(made: Any, model: Model) -> None:
    model.gate.clear()
    async with made() as batcher:
        first = start(batcher, 0)
        await model.running()
        one, other = start(batcher, 1, 2)
        await queued(batcher, 2)
        model.gate.set()
        await model.running()
        one.cancel()
        assert await values([*first, other]) == [0, 4]


async def test_a_full_queue_refuses(made: Any, model: Model, registry: CollectorRegistry) -> None:
    model.gate.clear()
    async with made(max_queue=2) as batcher:
        tasks = start(batcher, 1)
        await model.running()
        tasks += start(batcher, 2, 3)
        await queued(batcher, 2)
        with pytest.raises(Overloaded, match="2 requests are waiting"):
            await batcher.submit(4)
        model.gate.set()
        assert await values(tasks) == [2, 4, 6]
    assert registry.get_sample_value("ziya_test_batch_dropped_total", {"reason": "full"}) == 1


async def test_the_backlog_is_told_in_seconds(made: Any, model: Model, registry: CollectorRegistry) -> None:
    """As many as wait, times what one has taken so far; nothing before anything was measured."""
    model.gate.clear()
    async with made() as batcher:
        tasks = start(batcher, 1)
        await model.running()
        tasks += start(batcher, 2, 3)
        await queued(batcher, 2)
        assert registry.get_sample_value("ziya_test_batch_backlog_seconds") == 0
        model.gate.set()
        await values(tasks)
        model.gate.clear()
        tasks = start(batcher, 4)
        await model.running()
        tasks += start(batcher, 5, 6, 7)
        await queued(batcher, 3)
        told = registry.get_sample_value("ziya_test_batch_backlog_seconds")
        seconds = registry.get_sample_value("ziya_test_batch_compute_seconds_sum")
        model.gate.set()
        await values(tasks)
    assert told is not None
    assert seconds is not None
    assert 0 < told <= 3 * seconds


async def test_the_gone_make_room_in_a_full_queue(made: Any, model: Model) -> None:
    model.gate.clear()
    async with made(max_queue=1) as batcher:
        tasks = start(batcher, 1)
        await model.running()
        (gone,) = start(batcher, 2)
        await queued(batcher, 1)
        gone.cancel()
        await asyncio.wait([gone])
        tasks += start(batcher, 3)
        await queued(batcher, 1)
        model.gate.set()
        assert await values(tasks) == [2, 6]


async def test_close_lets_the_running_batch_end_and_refuses_the_rest(made: Any, model: Model) -> None:
    model.gate.clear()
    async with made() as batcher:
        (running,) = start(batcher, 1)
        await model.running()
        (waiting,) = start(batcher, 2)
        await queued(batcher, 1)
        closing = asyncio.create_task(batcher.close())
        model.gate.set()
        await closing
        assert (await running).value == 2
        with pytest.raises(Unavailable):
            await waiting
        with pytest.raises(Unavailable):
            await batcher.submit(3)


async def test_metrics_tell_size_and_time(made: Any, registry: CollectorRegistry) -> None:
    async with made() as batcher:
        await batcher.submit(1)
        await batcher.submit(2)
    for name in ("size", "queue_seconds", "compute_seconds"):
        assert registry.get_sample_value(f"ziya_test_batch_{name}_count") == 2
