"""The reading end on a real Redis: nothing is lost, a dead consumer's work is claimed, poison is set aside."""

from __future__ import annotations

import asyncio
import time

import pytest
from prometheus_client import CollectorRegistry

from tests.bus_words import consume, first, opened, pending, until_blocked, work
from ziya.bus import WORK, Announcements, Bus
from ziya.errors import Internal
from ziya.telemetry import Metrics
from ziya.work_stream import DEAD

# Short enough to wait for, in place of ten seconds.
IDLE = 0.05


async def test_published_work_is_delivered_whole(bus: Bus) -> None:
    sent = work(7)
    await bus.publish(sent)
    (delivery,) = await first(bus)
    assert delivery.work == sent
    assert delivery.deliveries == 1


async def test_a_waiting_consumer_wakes_at_once(bus: Bus, redis_url: str) -> None:
    async with opened(redis_url) as other, consume(other) as batches:
        waiting = asyncio.create_task(anext(batches))
        await until_blocked(bus)
        await bus.publish(work(1))
        (delivery,) = await waiting
        assert delivery.work.request_id == "r1"


async def test_a_batch_has_at_most_count_entries(bus: Bus) -> None:
    for number in range(5):
        await bus.publish(work(number))
    async with consume(bus, count=2) as batches:
        sizes = [len(await anext(batches)) for _ in range(3)]
    assert sizes == [2, 2, 1]


async def test_acknowledging_leaves_nothing_behind(bus: Bus) -> None:
    for number in range(3):
        await bus.publish(work(number))
    async with consume(bus) as batches:
        batch = await anext(batches)
        assert await bus.backlog() == 3
        await bus.acknowledge(batch[:2])
        assert (await bus.backlog(), await pending(bus)) == (1, 1)
        await bus.acknowledge(batch[2:])
    await bus.acknowledge([])
    assert (await bus.backlog(), await pending(bus)) == (0, 0)


async def test_two_consumers_share_the_work(bus: Bus, redis_url: str) -> None:
    for number in range(20):
        await bus.publish(work(number))
    seen: list[str] = []

    async def run(name: str) -> None:
        async with opened(redis_url) as own, consume(own, name, count=3) as batches:
            async for batch in batches:
                seen.extend(delivery.work.request_id for delivery in batch)
                await own.acknowledge(batch)
                if len(seen) == 20:
                    return

    tasks = [asyncio.create_task(run(name)) for name in ("one", "two")]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(seen) == sorted(f"r{number}" for number in range(20))


async def test_a_dead_consumers_work_is_claimed_by_a_peer(redis_url: str) -> None:
    registry = CollectorRegistry()
    async with opened(redis_url) as dead, opened(redis_url, metrics=Metrics("q", registry)) as peer:
        await dead.publish(work(1))
        assert (await first(dead))[0].deliveries == 1
        (claimed,) = await first(peer, "two", claim_idle=IDLE)
        assert claimed.work.request_id == "r1"
        assert claimed.deliveries == 2
        await peer.acknowledge([claimed])
        assert (await peer.backlog(), await pending(peer)) == (0, 0)
    assert registry.get_sample_value("ziya_q_bus_claimed_total") == 1


async def test_a_restarted_consumer_of_the_same_name_gets_its_work_again(redis_url: str) -> None:
    async with opened(redis_url) as before:
        await before.publish(work(1))
        await first(before)
    async with opened(redis_url) as after:
        (again,) = await first(after, claim_idle=IDLE)
        assert again.deliveries == 2


async def test_a_living_consumer_keeps_what_it_holds(bus: Bus, redis_url: str) -> None:
    await bus.publish(work(1))
    async with consume(bus, "slow", claim_idle=IDLE) as batches, opened(redis_url) as peer:
        held = await anext(batches)
        async with consume(peer, "eager", claim_idle=IDLE) as others:
            eager = asyncio.create_task(anext(others))
            # Several times the idle limit: the renewals are what keeps the peer out.
            done, _ = await asyncio.wait([eager], timeout=8 * IDLE)
            assert not done
            await bus.acknowledge(held)
            await bus.publish(work(2))
            (delivery,) = await eager
            assert (delivery.work.request_id, delivery.deliveries) == ("r2", 1)


async def test_a_claim_lapses_with_the_works_deadline(bus: Bus, redis_url: str) -> None:
    await bus.publish(work(1, seconds=-1.0))
    async with consume(bus, "stuck", claim_idle=IDLE) as batches, opened(redis_url) as peer:
        await anext(batches)
        (claimed,) = await first(peer, "two", claim_idle=IDLE)
        assert claimed.deliveries == 2


async def test_work_that_kills_its_consumers_is_given_up(redis_url: str) -> None:
    registry = CollectorRegistry()
    async with opened(redis_url, metrics=Metrics("q", registry)) as bus:
        announcements = Announcements(bus)
        await announcements.start()
        await bus.publish(work(1))
        for delivery in range(1, 4):
            async with opened(redis_url) as victim:
                (got,) = await first(victim, f"victim {delivery}", claim_idle=IDLE, max_deliveries=3)
                assert got.deliveries == delivery
        async with consume(bus, "last", claim_idle=IDLE, max_deliveries=3) as batches:
            reading = asyncio.create_task(anext(batches))
            with pytest.raises(Internal, match="given up after 3 attempts"):
                await announcements.wait("ziya:tokens:1", time.time() + 10)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        assert (await bus.backlog(), await pending(bus)) == (0, 0)
        letters = [fields for _, fields in await bus.link.call("XRANGE", DEAD, "-", "+")]
        assert len(letters) == 1
        assert b"too many deliveries" in letters[0]
        assert b"ziya:features:1" in letters[0]
        await announcements.close()
    assert registry.get_sample_value("ziya_q_bus_dead_letters_total", {"reason": "too many deliveries"}) == 1


@pytest.mark.parametrize(
    "fields",
    [
        ["nonsense", "x"],
        ["features_key", "f", "tokens_key", "t", "instruction", "", "request_id", "r"],
        [*work().fields()[:6], "deadline", "soon", "request_id", "r"],
        [*work().fields()[:6], "deadline", "nan", "request_id", "r"],
        [*work().fields(), "extra", "x"],
        [b"features_key", b"\xff\xfe", *work().fields()[2:]],
    ],
    ids=["foreign", "no deadline", "wrong deadline", "nan deadline", "unknown field", "not text"],
)
async def test_an_undecodable_entry_is_set_aside(redis_url: str, fields: list[str | bytes]) -> None:
    registry = CollectorRegistry()
    async with opened(redis_url, metrics=Metrics("q", registry)) as bus:
        await bus.link.call("XADD", WORK, "*", *fields)
        await bus.publish(work(2))
        batch = await first(bus)
        assert [delivery.work.request_id for delivery in batch] == ["r2"]
        await bus.acknowledge(batch)
        assert (await bus.backlog(), await pending(bus)) == (0, 0)
        (letter,) = await bus.link.call("XRANGE", DEAD, "-", "+")
        assert letter[1][-2:] == [field if isinstance(field, bytes) else field.encode() for field in fields[-2:]]
    assert registry.get_sample_value("ziya_q_bus_dead_letters_total", {"reason": "undecodable"}) == 1


async def test_an_entry_deleted_while_pending_is_forgotten(bus: Bus, redis_url: str) -> None:
    await bus.publish(work(1))
    (gone,) = await first(bus)
    await bus.link.call("XDEL", WORK, gone.id)
    async with opened(redis_url) as peer, consume(peer, "two", claim_idle=IDLE) as batches:
        reading = asyncio.create_task(anext(batches))
        async with asyncio.timeout(10):
            while await pending(bus):
                await asyncio.sleep(0.005)
        await bus.publish(work(2))
        assert (await reading)[0].work.request_id == "r2"


async def test_the_group_is_made_again_when_only_it_is_lost(bus: Bus, redis_url: str) -> None:
    async with opened(redis_url) as other, consume(other) as batches:
        await bus.publish(work(1))
        await other.acknowledge(await anext(batches))
        reading = asyncio.create_task(anext(batches))
        await until_blocked(bus)
        await bus.link.call("FLUSHALL")
        await bus.publish(work(2))
        assert (await reading)[0].work.request_id == "r2"
