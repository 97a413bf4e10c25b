"""Admission: what there is room for, who is next, who gives way, and that no room is ever lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.gateway.admission.admission import Admission, Capacity, Place
from services.gateway.admission.cost import Cost, Costs
from services.gateway.admission.metrics import AdmissionMetrics
from services.gateway.dialogue import Ask, Dialogue, ImageSource, Sampling
from services.gateway.keys.api_keys import Caller
from services.gateway.keys.key_entry import Key, Priority
from tests.fakes import CONFIG, soon
from ziya.errors import DeadlineExceeded, Overloaded, Unavailable
from ziya.prompt import Turn
from ziya.telemetry import Metrics

TEXT = Cost(tokens=10)
ROOM: dict[str, Any] = {"requests": 100, "images": 100, "tokens": 100_000, "waiting": 100, "wait_seconds": 30.0}


@dataclass
class Hall:
    """An Admission, and those who came to it by the names a test gives them."""

    admission: Admission
    registry: CollectorRegistry
    places: dict[str, Place] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    async def come(self, name: str, caller: Caller, cost: Cost = TEXT, seconds: float = 30.0) -> None:
        self.places[name] = await self.admission.place(caller, cost, time.time() + seconds)
        self.order.append(name)

    async def queue(self, name: str, caller: Caller, cost: Cost = TEXT, seconds: float = 30.0) -> asyncio.Task[None]:
        """Comes, and has joined the queue (or got a place) when this returns."""
        task = asyncio.create_task(self.come(name, caller, cost, seconds))
        await asyncio.sleep(0)
        return task

    async def leave(self, name: str) -> None:
        self.places.pop(name).__exit__(None, None, None)
        for _ in range(5):
            await asyncio.sleep(0)

    def number(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"ziya_gateway_{name}", labels) or 0.0

    def shed(self, reason: str) -> float:
        return self.number("shed_total", reason=reason)


def hall(**capacity: Any) -> Hall:
    metrics = Metrics("gateway")
    return Hall(Admission(Capacity(**(ROOM | capacity)), AdmissionMetrics(metrics)), metrics.registry)


def caller(name: str, priority: Priority = Priority.NORMAL, weight: float = 1.0) -> Caller:
    return Caller(Key(name, priority=priority, weight=weight), priority)


A, B = caller("a"), caller("b")


async def refused(work: Awaitable[Any]) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        await work
    return caught.value


# What there is room for


@pytest.mark.parametrize(
    ("capacity", "cost"),
    [
        ({"requests": 2}, TEXT),
        ({"images": 6}, Cost(images=3, tokens=1)),
        ({"tokens": 25}, TEXT),
    ],
)
async def test_each_of_requests_images_and_tokens_is_a_bound(capacity: dict[str, int], cost: Cost) -> None:
    here = hall(**capacity, waiting=0)
    await here.come("1", A, cost)
    await here.come("2", A, cost)
    await refused(here.come("3", A, cost))
    assert here.shed("full") == 1
    await here.leave("1")
    await here.come("3", A, cost)


async def test_a_request_larger_than_all_room_waits_until_it_is_alone() -> None:
    here = hall(images=4, tokens=25)
    await here.come("1", A)
    large = await here.queue("large", A, Cost(images=9, tokens=500))
    behind = await here.queue("behind", A)
    assert here.order == ["1"]
    await here.leave("1")
    assert here.order == ["1", "large"]
    await here.leave("large")
    await asyncio.gather(large, behind)


async def test_images_room_comes_back_with_the_first_text() -> None:
    here = hall(images=2, waiting=0)
    await here.come("1", A, Cost(2, 10))
    await refused(here.come("2", A, Cost(1, 10)))
    here.places["1"].seen()
    here.places["1"].seen()
    await here.come("2", A, Cost(1, 10))
    for name in ("1", "2"):
        await here.leave(name)
    assert here.number("images_in_flight") == here.number("tokens_in_flight") == 0


async def test_text_passes_where_only_images_are_scarce() -> None:
    here = hall(images=2)
    await here.come("1", A, Cost(2, 10))
    image = await here.queue("image", A, Cost(1, 10))
    text = await here.queue("text", A)
    assert here.order == ["1", "text"]
    second = await here.queue("second image", B, Cost(1, 10))
    await here.leave("1")
    await asyncio.gather(image, text, second)
    assert here.order == ["1", "text", "second image", "image"]


async def test_nothing_passes_what_waits_for_tokens() -> None:
    here = hall(tokens=100)
    await here.come("1", A, Cost(tokens=60))
    large = await here.queue("large", B, Cost(tokens=90))
    small = await here.queue("small", B, Cost(tokens=10))
    assert here.order == ["1"]
    await here.leave("1")
    await asyncio.gather(large, small)
    assert here.order == ["1", "large", "small"]


# Who is next, and who gives way


async def test_higher_priorities_go_first() -> None:
    here = hall(requests=1)
    await here.come("first", A)
    waiting = [await here.queue(word, caller(word, Priority[word.upper()])) for word in ("low", "normal", "high")]
    for name in ("first", "high", "normal", "low"):
        await here.leave(name)
    await asyncio.gather(*waiting)
    assert here.order == ["first", "high", "normal", "low"]


async def test_a_greedy_key_does_not_starve_another() -> None:
    here = hall(requests=4)
    for number in range(4):
        await here.come(f"a{number}", A)
    waiting = [await here.queue(f"a{number}", A) for number in range(4, 24)]
    waiting += [await here.queue(f"b{number}", B) for number in range(4)]
    for number in range(4):
        await here.leave(f"a{number}")
    # Half of the places each, although twenty of the one stood before the four of the other.
    assert here.order[4:] == ["b0", "b1", "a4", "a5"]
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_weights_say_how_much_more_a_key_gets() -> None:
    here = hall(requests=8)
    heavy, light = caller("heavy", weight=3.0), caller("light")
    await here.come("all", caller("other"), Cost(tokens=100_000))
    waiting = [await here.queue(f"l{number}", light) for number in range(12)]
    waiting += [await here.queue(f"h{number}", heavy) for number in range(12)]
    await here.leave("all")
    assert sum(name.startswith("h") for name in here.order) == 6
    assert sum(name.startswith("l") for name in here.order) == 2
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_key_that_asks_for_images_and_one_that_asks_for_text_share_fairly() -> None:
    """By the scarcest thing each holds: a quarter of the images weighs as much as a quarter of the requests."""
    here = hall(requests=12, images=12)
    await here.come("all", caller("other"), Cost(tokens=100_000))
    waiting = [await here.queue(f"i{number}", A, Cost(3, 1)) for number in range(9)]
    waiting += [await here.queue(f"t{number}", B, Cost(0, 1)) for number in range(12)]
    await here.leave("all")
    assert sum(name.startswith("i") for name in here.order) == 3
    assert sum(name.startswith("t") for name in here.order) == 9
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_low_priority_is_shed_first() -> None:
    here = hall(requests=1, waiting=2)
    await here.come("first", A)
    low = await here.queue("low", caller("batch", Priority.LOW))
    normal = await here.queue("normal", A)
    high = await here.queue("high", caller("boss", Priority.HIGH))
    await refused(low)
    assert here.shed("displaced") == 1
    await refused(here.come("low again", caller("batch", Priority.LOW)))
    assert here.shed("full") == 1
    for name in ("first", "high", "normal"):
        await here.leave(name)
    await asyncio.gather(normal, high)


async def test_in_a_full_queue_the_greedy_key_gives_way() -> None:
    here = hall(requests=1, waiting=4)
    await here.come("a", A)
    greedy = [await here.queue(f"a{number}", A) for number in range(4)]
    modest = await here.queue("b", B)
    await refused(greedy[3])  # the latest of the key that has most
    assert not modest.done()
    await here.leave("a")
    assert here.order == ["a", "b"]
    for task in greedy:
        task.cancel()
    await asyncio.gather(*greedy, return_exceptions=True)


async def test_the_door_is_shut_when_all_is_full_and_opens_for_who_goes_before() -> None:
    here = hall(requests=1, waiting=1)
    with here.admission.enter(A), here.admission.enter(A):
        await here.come("first", A)
        waiting = await here.queue("low", caller("batch", Priority.LOW))
        with pytest.raises(Overloaded), here.admission.enter(caller("batch", Priority.LOW)):
            pass
        assert not waiting.done()
        with here.admission.enter(A):
            await refused(waiting)
            await here.leave("first")
    assert here.admission.in_flight == 0


async def test_a_key_with_less_inside_comes_in_while_nobody_can_be_told() -> None:
    here = hall(requests=1, waiting=1)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(here.admission.enter(A))  # neither answered nor waiting: their bodies are parsed
        with pytest.raises(Overloaded), here.admission.enter(A):
            pass
        stack.enter_context(here.admission.enter(B))
        stack.enter_context(here.admission.enter(caller("c")))
        with pytest.raises(Overloaded), here.admission.enter(caller("d", Priority.HIGH)):
            pass  # twice the room is the end
        await here.come("first", A)
        waiting = await here.queue("second", A)
        modest = await here.queue("b", B)
        await refused(waiting)
        await here.leave("first")
        await modest
    assert here.admission.in_flight == 0


async def test_two_keys_do_not_displace_each_other_for_ever() -> None:
    here = hall(requests=1, waiting=2)
    await here.come("first", caller("other"))
    with here.admission.enter(A), here.admission.enter(A), here.admission.enter(B):
        one, two = await here.queue("a", A), await here.queue("b", B)
        for arriving in (A, B):
            with pytest.raises(Overloaded), here.admission.enter(arriving):
                pass
        assert not one.done()
        assert not two.done()
        await here.leave("first")
        await one
        await here.leave("a")
        await two


# Waiting ends


async def test_nobody_waits_longer_than_the_bound() -> None:
    here = hall(requests=1, wait_seconds=0.05)
    await here.come("first", A)
    error = await refused(here.come("second", A))
    assert error.retry_after >= 1
    assert here.shed("waited") == 1
    assert here.number("waiting") == 0


async def test_what_has_expired_is_dropped_before_it_begins() -> None:
    here = hall(requests=1)
    await here.come("first", A)
    with pytest.raises(DeadlineExceeded):
        await here.come("late", A, seconds=0.05)
    assert here.shed("expired") == 1
    late = await here.queue("too late", A, seconds=0.02)
    time.sleep(0.03)  # noqa: ASYNC251 (nobody is told in between that its time is over)
    here.places.pop("first").__exit__(None, None, None)
    with pytest.raises(DeadlineExceeded):
        await late
    assert here.order == ["first"]


async def test_who_leaves_the_queue_leaves_no_room_taken() -> None:
    here = hall(requests=1)
    await here.come("first", A)
    gone, stays = await here.queue("gone", A), await here.queue("stays", A)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert here.shed("left") == 1
    await here.leave("first")
    await stays
    # Granted and cancelled in the same moment.
    granted = await here.queue("granted", A)
    here.places.pop("stays").__exit__(None, None, None)
    granted.cancel()
    await asyncio.gather(granted, return_exceptions=True)
    assert here.number("tokens_in_flight") == 0
    await here.come("last", A)


async def test_retry_after_grows_with_the_queue_and_the_time_that_requests_take() -> None:
    here = hall(requests=1, waiting=0)
    await here.come("first", A)
    here.admission._held_seconds = 7.0
    assert (await refused(here.come("second", A))).retry_after == pytest.approx(7.0 * 2)


async def test_nobody_enters_while_draining() -> None:
    here = hall()
    with here.admission.enter(A):
        draining = asyncio.create_task(here.admission.drain(30))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable), here.admission.enter(A):
            pass
        assert not draining.done()
    await draining


async def test_at_random_no_room_is_lost_and_no_bound_is_broken() -> None:
    here = hall(requests=5, images=8, tokens=200, waiting=7, wait_seconds=0.02)
    bounds = {"images_in_flight": 8, "tokens_in_flight": 200, "waiting": 7}
    broken: list[str] = []
    outcomes: dict[str, int] = {}

    async def one(number: int) -> None:
        who = caller(f"k{number % 3}", Priority(number % 3), 1 + number % 2)
        try:
            with await here.admission.place(who, Cost(number % 4, 1 + number * 7 % 60), soon()) as place:
                broken.extend(name for name, bound in bounds.items() if here.number(name) > bound)
                await asyncio.sleep(number % 5 / 1000)
                place.seen()
                await asyncio.sleep(number % 3 / 1000)
            outcome = "answered"
        except Overloaded:
            outcome = "refused"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    tasks = []
    for number in range(400):
        tasks.append(asyncio.create_task(one(number)))
        if number % 11 == 0:
            tasks[number // 2].cancel()
        if number % 3 == 0:
            await asyncio.sleep(0.001)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
    assert outcomes["answered"] > 50
    assert outcomes["refused"] > 0
    assert broken == []
    assert here.number("images_in_flight") == here.number("tokens_in_flight") == here.number("waiting") == 0
    assert here.admission._shares.held == here.admission._shares.waiting == {}


# What a request costs


def test_a_request_costs_its_images_its_prompt_and_its_longest_answer() -> None:
    images = (ImageSource("a", data=b"x"), ImageSource("b", data=b"y"))

    def ask(text: str, **sampling: Any) -> Ask:
        turns = (Turn("user", text, images), Turn("assistant", "", ()), Turn("user", "", ()))
        return Ask(Dialogue(turns, "sys"), Sampling(**sampling), 0.0, 0.0, "r")

    costs = Costs(CONFIG)
    assert costs.of(ask("abcdef", max_tokens=5)) == Cost(2, 3 + 2 * CONFIG.queries + 5)
    assert costs.of(ask("你好呀", max_tokens=5)) == Cost(2, 4 + 2 * CONFIG.queries + 5)
    assert costs.of(ask("")) == Cost(2, 1 + 2 * CONFIG.queries + CONFIG.generation.max_tokens)
    assert costs.of(ask("", max_tokens=10**6)) == Cost(2, CONFIG.context_length)
