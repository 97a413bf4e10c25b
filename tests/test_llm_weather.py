"""A server that is busy, broken, slow, gone, or not the one that was meant."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from tests.llm_process import LlmProcess
from tests.llm_server import LlmServer, Troubles
from tests.openai_server import ManualClock
from training.errors import BadConfig, EndpointGone, Stopped
from training.llm import many
from training.llm.asker import Asker
from training.llm.endpoint import Endpoint
from training.llm.ledger import Ledger
from training.llm.pace import Pace
from training.llm.question import Answer, Failure, Question


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as file:
        yield file


def questions(count: int) -> Iterator[tuple[int, Question]]:
    for number in range(count):
        yield number, Question(({"role": "user", "content": f"Number {number}."},), None, 32)


async def all_of(asker: Asker, count: int) -> dict[int, Answer | Failure]:
    async with asker:
        return {number: known async for number, known in asker.ask_all(questions(count))}


@pytest.mark.parametrize("trouble", ["rate_limit", "error", "close", "cut"])
async def test_what_passes_is_asked_again_and_nothing_is_paid_twice(ledger: Ledger, trouble: str) -> None:
    async with LlmServer(troubles=Troubles(**{trouble: 3})) as server:
        endpoint = Endpoint(server.url, "m", concurrency=8)
        found = await all_of(Asker(endpoint, ledger, clock=(clock := ManualClock()), sleep=clock.sleep), 60)
        assert all(isinstance(known, Answer) for known in found.values())
        assert len(server.paid) == 60
        assert set(server.paid.values()) == {1}
        assert max(server.asked.values()) > 1
    assert ledger.spent().requests == 60


@pytest.mark.parametrize("trouble", ["hang", "drip"])
async def test_a_server_that_is_silent_or_never_done_is_asked_again(ledger: Ledger, trouble: str) -> None:
    async with LlmServer(troubles=Troubles(**{trouble: 5})) as server:
        endpoint = Endpoint(server.url, "m", concurrency=8, timeout=0.5)
        found = await all_of(Asker(endpoint, ledger, clock=(clock := ManualClock()), sleep=clock.sleep), 20)
        assert all(isinstance(known, Answer) for known in found.values())
        assert (len(server.paid), set(server.paid.values())) == (20, {1})
        assert max(server.asked.values()) > 1, "who is slow is not waited for"


class HeldClock:
    """Who sleeps wakes when the test lets the time pass."""

    def __init__(self) -> None:
        self.now, self.sleepers = 0.0, 0
        self._passed = asyncio.Condition()

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        self.sleepers += 1
        async with self._passed:
            await self._passed.wait_for(lambda: self.now >= until)
        self.sleepers -= 1

    async def pass_by(self, seconds: float) -> None:
        self.now += seconds
        async with self._passed:
            self._passed.notify_all()


@pytest.mark.parametrize("date", [False, True])
async def test_who_is_told_when_to_come_back_does_not_come_before(ledger: Ledger, date: bool) -> None:
    """Nobody does: the second question was not told, but it is the same server."""
    clock = HeldClock()
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True) if date else "90"
    async with (
        LlmServer(troubles=Troubles(rate_limit=1, retry_after=later)) as server,
        Asker(Endpoint(server.url, "m"), ledger, clock=clock, sleep=clock.sleep) as asker,
    ):
        first, second = (question for _, question in questions(2))
        told = asyncio.create_task(asker.ask(first))
        while clock.sleepers < 1:
            await asyncio.sleep(0)
        server.troubles = Troubles()
        other = asyncio.create_task(asker.ask(second))
        while clock.sleepers < 2 and not other.done():
            await asyncio.sleep(0)
        await clock.pass_by(80)
        for _ in range(10):
            await asyncio.sleep(0.01)
        assert (server.requests, told.done(), other.done()) == (1, False, False)
        await clock.pass_by(20)
        assert isinstance(await told, Answer)
        assert isinstance(await other, Answer)


async def test_the_pace_is_kept_in_every_minute() -> None:
    clock = ManualClock()
    times = []
    pace = Pace(120.0, clock, clock.sleep)
    for _ in range(500):
        await pace.take()
        times.append(clock.now)
    busiest = max(sum(start <= when < start + 60 for when in times) for start in times)
    assert 119 <= busiest <= 122
    assert times[-1] == pytest.approx(500 / 2, abs=2)


async def test_a_large_amount_waits_for_those_before_and_is_waited_for() -> None:
    clock = ManualClock()
    pace = Pace(60.0, clock, clock.sleep)
    await pace.take(30.0)
    assert clock.now == 0
    await pace.take(1.0)
    assert clock.now == pytest.approx(29.0)
    pace.give_back(1.0)
    await pace.take(1.0)
    assert clock.now == pytest.approx(29.0)


async def test_requests_and_tokens_are_paced(ledger: Ledger) -> None:
    clock = ManualClock()
    async with LlmServer() as server:
        endpoint = Endpoint(server.url, "m", concurrency=4, requests_per_minute=60.0)
        await all_of(Asker(endpoint, ledger, clock=clock, sleep=clock.sleep), 30)
        assert 28 <= clock.now < 200
        before = clock.now
        # One at a time: this clock moves on by the waits of all who wait together.
        counted = replace(endpoint, model="n", concurrency=1, requests_per_minute=None, tokens_per_minute=600.0)
        found = await all_of(Asker(counted, ledger, clock=clock, sleep=clock.sleep), 30)
        answers = [known for known in found.values() if isinstance(known, Answer)]
        tokens = [answer.prompt_tokens + answer.completion_tokens for answer in answers]
        assert len(tokens) == 30
        # Ten a second, a second's worth at once, and nobody waits for what the last one used.
        assert clock.now - before == pytest.approx((sum(tokens[:-1]) - 10) / 10)


async def test_no_more_are_in_flight_than_was_said(ledger: Ledger) -> None:
    async with LlmServer(troubles=Troubles(delay=0.01)) as server:
        await all_of(Asker(Endpoint(server.url, "m", concurrency=5), ledger), 50)
        assert server.most_at_once == 5


async def test_a_wrong_key_stops_at_once_and_is_not_shown(ledger: Ledger) -> None:
    async with LlmServer(api_key="right") as server:
        with pytest.raises(BadConfig) as caught:
            await all_of(Asker(Endpoint(server.url, "m", api_key="wrong-key"), ledger), 500)
        assert server.url in str(caught.value)
        assert "model m" in str(caught.value)
        assert "wrong-key" not in str(caught.value)
        good = await all_of(Asker(Endpoint(server.url, "m", api_key="right"), ledger), 3)
        assert len(good) == 3


async def test_a_wrong_model_or_path_stops_at_once(ledger: Ledger) -> None:
    async with LlmServer(models=["there"]) as server:
        for endpoint in (Endpoint(server.url, "not-there"), Endpoint(server.url.replace("v1", "v2"), "there")):
            with pytest.raises(BadConfig, match=f"{endpoint.base_url}, model {endpoint.model}: no such model"):
                await all_of(Asker(endpoint, ledger), 500)


async def test_nothing_goes_through_a_proxy_to_this_machine(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with LlmServer() as server:
        found = await all_of(Asker(Endpoint(server.url, "m", max_attempts=1, patience=0.0), ledger), 1)
    assert isinstance(found[0], Answer)


async def test_a_server_that_nobody_reaches_is_gone_after_some_patience(ledger: Ledger) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    clock = ManualClock()
    endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", "m", patience=200.0)
    with pytest.raises(EndpointGone, match=rf"127.0.0.1:{port}/v1, model m: no answer for 200 s"):
        await all_of(Asker(endpoint, ledger, clock=clock, sleep=clock.sleep), 50)
    assert clock.now > 200
    assert ledger.spent().requests == 0


async def test_one_question_that_always_breaks_the_server_does_not_stop_the_others(ledger: Ledger) -> None:
    def rule(messages: list[dict[str, str]], _: object) -> str:
        if messages[0]["content"] == "Number 7.":
            raise ConnectionError("this one breaks me")
        return "fine"

    clock = ManualClock()
    async with LlmServer(rule, troubles=Troubles(delay=0.001)) as server:
        endpoint = Endpoint(server.url, "m", concurrency=2, max_attempts=4)
        found = await all_of(Asker(endpoint, ledger, clock=clock, sleep=clock.sleep), 200)
    assert [number for number, known in found.items() if isinstance(known, Failure)] == [7]
    assert found[7].reason == "unavailable"
    assert ledger.spent().requests == 199, "it is asked again another day"


async def test_a_server_that_dies_again_and_again_costs_nothing_twice(ledger: Ledger, tmp_path: Path) -> None:
    """It dies with an answer paid and unsent, each time; its journal knows."""
    process = LlmProcess(tmp_path / "paid.jsonl", Troubles(die_after=15))
    with process:

        async def revive() -> None:
            deaths = 0
            while True:
                await asyncio.sleep(0.02)
                if process.is_dead:
                    deaths += 1
                    process.kill()
                    process.troubled(Troubles(die_after=15 * (deaths + 1)))
                    await asyncio.to_thread(process.start)

        nurse = asyncio.create_task(revive())
        found = await all_of(Asker(Endpoint(process.url, "m", concurrency=4), ledger), 50)
        nurse.cancel()
        await asyncio.gather(nurse, return_exceptions=True)
        assert all(isinstance(known, Answer) for known in found.values())
        paid = process.counts()["paid"]
    assert len(paid) == 50
    assert set(paid.values()) == {1}


async def test_equal_questions_are_asked_once(ledger: Ledger) -> None:
    async with LlmServer() as server:
        server.hold()
        async with Asker(Endpoint(server.url, "m", concurrency=8), ledger) as asker:
            (_, one), (_, two) = questions(2)
            async with aclosing(asker.ask_all((n, (one, two)[n % 2]) for n in range(100))) as answers:
                first = asyncio.create_task(anext(answers))
                while server.at_once < 2:
                    await asyncio.sleep(0.01)
                server.go()
                texts = {(await first)[1].text} | {known.text async for _, known in answers}
        assert (server.requests, len(texts)) == (2, 2)


async def test_who_goes_away_does_not_take_the_answer_from_others(ledger: Ledger) -> None:
    async with LlmServer() as server:
        server.hold()
        async with Asker(Endpoint(server.url, "m"), ledger) as asker:
            [(_, one)] = questions(1)
            first, second = asyncio.create_task(asker.ask(one)), asyncio.create_task(asker.ask(one))
            while server.at_once < 1:
                await asyncio.sleep(0.01)
            first.cancel()
            server.go()
            assert isinstance(await second, Answer)
            assert first.cancelled()
        assert server.requests == 1


async def test_a_consumer_that_stops_stops_the_asking(ledger: Ledger) -> None:
    async with LlmServer() as server:
        async with Asker(Endpoint(server.url, "m", concurrency=4), ledger) as asker:
            async with aclosing(asker.ask_all(questions(10_000))) as answers:
                await anext(answers)
            assert len(asyncio.all_tasks()) < 20
        asked = server.requests
        await asyncio.sleep(0.1)
        assert server.requests == asked < 50
    assert ledger.spent().requests <= asked


async def test_what_is_in_flight_is_answered_before_the_questions_own_error_is_raised(ledger: Ledger) -> None:
    def broken() -> Iterator[tuple[int, Question]]:
        yield from questions(10)
        raise ValueError("line 11 is wrong")

    found: list[int] = []
    async with LlmServer(troubles=Troubles(delay=0.05)) as server, Asker(Endpoint(server.url, "m"), ledger) as asker:
        with pytest.raises(ValueError, match="line 11"):
            await gather(asker, broken(), found)
    assert sorted(found) == list(range(10))


async def test_a_signal_to_stop_does_not_wait_for_a_server_that_is_silent(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "DRAIN_SECONDS", 0.2)

    def stopped() -> Iterator[tuple[int, Question]]:
        yield from questions(10)
        raise Stopped("asked to stop")

    found: list[int] = []
    async with LlmServer(troubles=Troubles(hang=2)) as server, Asker(Endpoint(server.url, "m"), ledger) as asker:
        with pytest.raises(Stopped):
            await gather(asker, stopped(), found)
    assert len(found) == 5
    assert ledger.spent().requests == 5


async def gather(asker: Asker, asked: Iterator[tuple[int, Question]], found: list[int]) -> None:
    async for number, _ in asker.ask_all(asked):
        found.append(number)
