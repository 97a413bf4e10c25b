"""How a load is sent: closed and open loops, bounds, time limits, and that a late server or client hides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cli.load.measures import summarise
from cli.load.openai_caller import OpenAICaller
from cli.load.request import Clock, Options
from cli.load.run import PAUSE_SECONDS, Bounds, Run
from tests.load import plain
from tests.openai_server import (
    ANSWER,
    At,
    ManualClock,
    OpenAIServer,
    Script,
    Wait,
    error,
    finish,
    openai_server,
    text,
)


@asynccontextmanager
async def load(server: OpenAIServer, bounds: Bounds, clock: Clock, sleep: Any = asyncio.sleep) -> AsyncIterator[Run]:
    caller = OpenAICaller(server.url, "m", Options(), clock)
    try:
        yield Run(caller, plain(), bounds, clock, sleep)
    finally:
        await caller.close()


async def test_a_closed_loop_keeps_as_many_in_flight_and_ends_with_the_count() -> None:
    clock = ManualClock()
    async with openai_server() as server, load(server, Bounds(20, None, 30), clock) as run:
        full, gathered = asyncio.Event(), 0

        async def until_three_are_there(_: dict[str, Any]) -> None:
            nonlocal gathered
            gathered += 1
            if gathered == 3:
                full.set()
            await full.wait()

        server.before = until_three_are_there
        await run.closed(3)
    assert (server.most_in_flight, len(server.bodies), server.connections) == (3, 20, 3)
    assert [answer.request.number for answer in run.answers] == list(range(20))
    assert all(answer.succeeded for answer in run.answers)
    assert (run.in_flight, run.failed) == (0, 0)


async def test_a_closed_loop_starts_nothing_after_its_time_but_lets_it_end() -> None:
    clock = ManualClock()
    steps = [Script((At(at), text("a"), At(at + 0.5), finish())) for at in (1.0, 2.0, 3.5)]
    async with openai_server(*steps, clock=clock) as server, load(server, Bounds(None, 3.0, 30), clock) as run:
        await run.closed(1)
    assert [answer.pieces for answer in run.answers] == [[1.0], [2.0], [3.5]]
    assert [answer.intended for answer in run.answers] == [0.0, 1.5, 2.5]


async def test_who_is_refused_waits_a_little_before_it_asks_again() -> None:
    clock = ManualClock()
    async with (
        openai_server(error(429, "busy")) as server,
        load(server, Bounds(5, None, 30), clock, clock.sleep) as run,
    ):
        await run.closed(1)
    assert clock.now == pytest.approx(5 * PAUSE_SECONDS)
    assert run.failed == 5


async def test_an_open_loop_sends_at_its_times_however_many_are_unanswered() -> None:
    clock = ManualClock()
    times = [0.5 * n for n in range(8)]
    async with openai_server() as server, load(server, Bounds(8, None, 30), clock, clock.sleep) as run:
        all_there = asyncio.Event()

        async def until_all_are_there(_: dict[str, Any]) -> None:
            if len(server.bodies) == 8:
                all_there.set()
            await all_there.wait()

        server.before = until_all_are_there
        await run.open(iter(times))
    assert server.most_in_flight == 8
    assert [answer.intended for answer in run.answers] == times
    assert [answer.sent for answer in run.answers] == times
    assert all(answer.succeeded for answer in run.answers)


@pytest.mark.parametrize(
    ("bounds", "count"), [(Bounds(4, None, 30), 4), (Bounds(None, 2.0, 30), 3), (Bounds(9, 1.0, 30), 1)]
)
async def test_an_open_loop_ends_by_count_or_by_time(bounds: Bounds, count: int) -> None:
    clock = ManualClock()
    async with openai_server() as server, load(server, bounds, clock, clock.sleep) as run:
        await run.open(iter([0.5, 1.0, 1.5, 2.5, 3.0, 3.5]))
    assert len(run.answers) == len(server.bodies) == count


async def test_a_server_that_stalls_cannot_hide_it_in_requests_that_were_not_sent() -> None:
    """One place; the first answer takes ten seconds, the others none: whoever waited for the place has waited."""
    clock = ManualClock()
    slow, fast = Script((At(10.0), text("a"), finish())), Script((text("a"), finish()))
    async with (
        openai_server(slow, fast, clock=clock) as server,
        load(server, Bounds(5, None, 30), clock, clock.sleep) as run,
    ):
        await run.open(iter([0.0, 1.0, 2.0, 3.0, 4.0]), most=1)
    assert server.most_in_flight == 1
    assert [answer.ttft for answer in run.answers] == [10.0, 9.0, 8.0, 7.0, 6.0]
    summary = summarise(run.answers, 10.0)
    assert summary.ttft is not None
    assert summary.ttft.p50 == 8.0
    assert summary.send_lag is not None
    assert summary.send_lag.most == 9.0


async def test_a_client_that_is_late_counts_its_lateness() -> None:
    clock = ManualClock()

    async def oversleep(seconds: float) -> None:
        await clock.sleep(seconds + 0.25)

    async with openai_server() as server, load(server, Bounds(1, None, 30), clock, oversleep) as run:
        await run.open(iter([1.0, 2.0]))
    (answer,) = run.answers
    assert (answer.sent, answer.ttft, answer.e2e) == (1.25, 0.25, 0.25)


async def test_no_answer_in_time_is_a_failure_that_keeps_what_came() -> None:
    never = asyncio.Event()
    script = Script((text("a"), Wait(never)))
    async with openai_server(script) as server, load(server, Bounds(1, None, 0.3), ManualClock()) as run:
        await run.closed(1)
    (answer,) = run.answers
    assert answer.failure is not None
    assert (answer.failure.kind, str(answer.failure)) == ("timeout", "no complete answer within 0.3 s")
    assert len(answer.pieces) == 1
    assert summarise(run.answers, 1.0).succeeded == 0


async def test_what_is_cut_off_is_neither_answered_nor_failed() -> None:
    clock, never = ManualClock(), asyncio.Event()
    scripts = Script(ANSWER), Script(ANSWER), Script((text("a"), Wait(never)))
    async with openai_server(*scripts) as server, load(server, Bounds(50, None, 30), clock) as run:
        running = asyncio.create_task(run.closed(2))
        while server.in_flight < 2 or len(server.bodies) < 4:
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    summary = summarise(run.answers, 1.0)
    assert (summary.started, summary.succeeded, summary.failed, summary.unfinished) == (4, 2, 0, 2)


async def test_a_follow_up_brings_the_whole_conversation_and_its_answer() -> None:
    workload = plain(follow_ups=1.0, max_turns=3)
    async with openai_server() as server:
        caller = OpenAICaller(server.url, "m", Options(), ManualClock())
        run = Run(caller, workload, Bounds(4, None, 30), ManualClock())
        await run.closed(1)
        await caller.close()
    dialogues = [body["messages"] for body in server.bodies]
    assert [len(turns) for turns in dialogues] == [1, 3, 5, 1]  # after three questions a new conversation
    assert dialogues[2][:3] == dialogues[1]
    assert dialogues[1][:1] == dialogues[0]
    assert dialogues[1][1] == {"role": "assistant", "content": "a b c"}
    assert summarise(run.answers, 1.0).follow_ups == 2


def test_a_load_without_a_bound_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="bound"):
        Bounds(None, None, 30)
