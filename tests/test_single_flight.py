"""Equal requests at one time run once, whoever leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ziya.errors import DeadlineExceeded, InvalidImage
from ziya.single_flight import SingleFlight


class Encoding:
    """Work that begins, waits to be released, and remembers how often it ran and whether it was cancelled."""

    def __init__(self, error: Exception | None = None) -> None:
        self.runs = 0
        self.error = error
        self.begun, self.released, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def __call__(self) -> str:
        self.runs += 1
        self.begun.set()
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.error is not None:
            raise self.error
        return f"run {self.runs}"


def ask(flights: SingleFlight[str], work: Any, times: int = 1, key: str = "k") -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(flights.do(key, work)) for _ in range(times)]


async def test_equal_keys_run_once() -> None:
    work, flights = Encoding(), SingleFlight[str]()
    tasks = ask(flights, work, 10)
    await work.begun.wait()
    tasks += ask(flights, work, 10)
    await asyncio.sleep(0)
    work.released.set()
    results = await asyncio.gather(*tasks)
    assert work.runs == 1
    assert results == [("run 1", False)] + [("run 1", True)] * 19


async def test_other_keys_run_for_themselves() -> None:
    one, other, flights = Encoding(), Encoding(), SingleFlight[str]()
    tasks = ask(flights, one, key="a") + ask(flights, other, key="b")
    one.released.set()
    other.released.set()
    assert await asyncio.gather(*tasks) == [("run 1", False)] * 2


async def test_a_later_caller_runs_again() -> None:
    work, flights = Encoding(), SingleFlight[str]()
    work.released.set()
    assert await flights.do("k", work) == ("run 1", False)
    assert await flights.do("k", work) == ("run 2", False)


async def test_everyone_gets_the_error() -> None:
    work, flights = Encoding(InvalidImage("bad")), SingleFlight[str]()
    tasks = ask(flights, work, 3)
    work.released.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [InvalidImage] * 3
    assert work.runs == 1


async def test_the_first_caller_may_leave() -> None:
    work, flights = Encoding(), SingleFlight[str]()
    first, second = ask(flights, work, 2)
    await work.begun.wait()
    first.cancel()
    await asyncio.wait([first])
    work.released.set()
    assert await second == ("run 1", True)
    assert not work.cancelled.is_set()


async def test_the_last_caller_to_leave_ends_the_work() -> None:
    work, flights = Encoding(), SingleFlight[str]()
    tasks = ask(flights, work, 2)
    await work.begun.wait()
    for task in tasks:
        task.cancel()
    await work.cancelled.wait()
    # And whoever comes now does not join the dead.
    fresh = Encoding()
    fresh.released.set()
    assert await flights.do("k", fresh) == ("run 1", False)


async def test_a_joined_caller_outlives_the_first_ones_deadline() -> None:
    short, long, flights = Encoding(DeadlineExceeded("the first caller's")), Encoding(), SingleFlight[str]()
    (first,) = ask(flights, short)
    await short.begun.wait()
    (second,) = ask(flights, long)
    await asyncio.sleep(0)
    short.released.set()
    with pytest.raises(DeadlineExceeded):
        await first
    long.released.set()
    assert await second == ("run 1", False)
