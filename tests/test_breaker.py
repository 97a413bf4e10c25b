"""When the gateway stops to ask Redis: gone, or slow several times in a row."""

from __future__ import annotations

import asyncio
import time

from services.gateway.breaker import SLOW_IN_A_ROW, Breaker
from ziya.errors import BusUnavailable


class Pings:
    """A Redis that answers `ping` after `seconds`, or not at all."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.fails = False
        self.asked = asyncio.Event()

    async def __call__(self) -> None:
        self.asked.set()
        await asyncio.sleep(self.seconds)
        if self.fails:
            raise BusUnavailable("gone")


def breaker(pings: Pings, slow: float = 0.05) -> tuple[Breaker, list[bool]]:
    told: list[bool] = []
    return Breaker(pings, interval=0.001, report=told.append, slow=slow), told


async def until(value: bool, of: Breaker) -> None:
    async with asyncio.timeout(10):
        while of.closed != value:
            await asyncio.sleep(0.001)


async def test_slow_answers_open_it_and_a_quick_ping_closes_it() -> None:
    pings = Pings()
    pings.seconds = 0.2
    here, told = breaker(pings)
    for _ in range(SLOW_IN_A_ROW):
        assert here.closed
        asked = time.monotonic()
        await asyncio.sleep(0.06)
        here.answered(asked)
    assert not here.closed
    await pings.asked.wait()
    pings.seconds = 0.0
    await until(True, here)
    assert told == [True, False, True]
    await here.close()


async def test_questions_side_by_side_count_once() -> None:
    here, told = breaker(Pings())
    asked = time.monotonic() - 1.0
    for _ in range(10):
        here.answered(asked)
    assert here.closed
    assert told == [True]


async def test_one_quick_answer_forgives_the_slow_ones() -> None:
    here, _ = breaker(Pings(), slow=0.0001)
    for _ in range(SLOW_IN_A_ROW - 1):
        asked = time.monotonic()
        await asyncio.sleep(0.001)
        here.answered(asked)
    here.answered(time.monotonic() + 1.0)
    asked = time.monotonic()
    await asyncio.sleep(0.001)
    here.answered(asked)
    assert here.closed


async def test_a_ping_that_is_too_slow_keeps_it_open() -> None:
    pings = Pings()
    pings.seconds = 0.1
    here, _ = breaker(pings)
    here.trip()
    await pings.asked.wait()
    pings.asked.clear()
    await pings.asked.wait()  # a second ping: the first was answered, too late
    assert not here.closed
    await here.close()
