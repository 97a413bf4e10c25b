"""The bus on a real Redis: what is put is there, a full backlog loses nothing, an outage is told and survived."""

from __future__ import annotations

import asyncio

import pytest

from tests.bus_words import GROUP, consume, first, opened, pending, work
from tests.redis_server import RedisServer
from ziya.bus import Bus, Delivery
from ziya.errors import BusUnavailable, InvalidImage, Overloaded
from ziya.work_stream import READY


async def test_put_and_get_bytes(bus: Bus) -> None:
    payload = bytes(range(256)) * 200
    await bus.put("k", payload, ttl=60)
    assert await bus.get("k") == payload
    assert await bus.get("other") is None
    assert await bus.get_many(["other", "k"]) == [None, payload]


async def test_what_is_put_expires(bus: Bus) -> None:
    await bus.put("k", b"x", ttl=60)
    assert 59_000 < await bus.link.call("PTTL", "k") <= 60_000
    await bus.put("k", b"x", ttl=0.01)
    async with asyncio.timeout(10):
        while await bus.get("k") is not None:
            await asyncio.sleep(0.005)


async def test_touch_says_what_exists_and_keeps_it(bus: Bus) -> None:
    await bus.put("a", b"x", ttl=1)
    assert await bus.touch(["a", "b"], ttl=600) == [True, False]
    assert await bus.link.call("PTTL", "a") > 590_000
    assert await bus.touch([], ttl=600) == []


async def test_finish_stores_announces_and_acknowledges(bus: Bus) -> None:
    await bus.publish(work(1))
    await bus.publish(work(2))
    well, badly = await first(bus)
    await bus.finish([(well, b"tokens"), (badly, InvalidImage("not this one"))], ttl=60)
    assert await bus.get("ziya:tokens:1") == b"tokens"
    assert await bus.get("ziya:tokens:2") is None
    announced = [fields for _, fields in await bus.link.call("XRANGE", READY, "-", "+")]
    assert announced == [
        [b"key", b"ziya:tokens:1", b"error", b""],
        [b"key", b"ziya:tokens:2", b"error", b"InvalidImage: not this one"],
    ]
    assert (await bus.backlog(), await pending(bus)) == (0, 0)


async def test_a_full_backlog_refuses_and_loses_nothing(redis_url: str) -> None:
    async with opened(redis_url, max_backlog=3) as bus:
        for number in range(3):
            await bus.publish(work(number))
        with pytest.raises(Overloaded, match="3 images are waiting"):
            await bus.publish(work(3))
        batch = await first(bus)
        assert [delivery.work.request_id for delivery in batch] == ["r0", "r1", "r2"]
        # Read is not finished: what a consumer holds counts.
        with pytest.raises(Overloaded):
            await bus.publish(work(3))
        await bus.acknowledge(batch[:1])
        await bus.publish(work(3))
        assert await bus.backlog() == 3


async def test_many_publishers_cannot_pass_the_limit_together(redis_url: str) -> None:
    async with opened(redis_url, max_backlog=10) as bus:
        results = await asyncio.gather(*(bus.publish(work(n)) for n in range(50)), return_exceptions=True)
        assert sum(isinstance(result, Overloaded) for result in results) == 40
        assert await bus.backlog() == 10


async def test_put_and_publish_is_one_step(redis_url: str) -> None:
    async with opened(redis_url, max_backlog=1) as bus:
        await bus.put_and_publish("ziya:features:1", b"features", 60, work(1))
        assert await bus.get("ziya:features:1") == b"features"
        assert await bus.backlog() == 1
        with pytest.raises(Overloaded):
            await bus.put_and_publish("ziya:features:2", b"features", 60, work(2))


async def test_nobody_there_is_bus_unavailable(free_port: int) -> None:
    async with opened(f"redis://user:secret@127.0.0.1:{free_port}/0", timeout=0.5) as bus:
        for attempt in (
            bus.ping(),
            bus.put("k", b"x", 1),
            bus.get("k"),
            bus.touch(["k"], 1),
            bus.publish(work()),
            bus.backlog(),
            bus.acknowledge([Delivery("0-1", work(), 1, GROUP)]),
            bus.announce("k"),
        ):
            with pytest.raises(BusUnavailable, match=f"127.0.0.1:{free_port}") as caught:
                await attempt
            assert "secret" not in str(caught.value)


async def test_a_frozen_redis_is_bus_unavailable(redis_server: RedisServer) -> None:
    async with opened(redis_server.url, timeout=0.1) as bus:
        await bus.ping()
        redis_server.freeze()
        with pytest.raises(BusUnavailable):
            await bus.get("k")
        redis_server.thaw()
        await bus.ping()


async def test_a_full_redis_is_bus_unavailable(redis_server: RedisServer) -> None:
    async with opened(redis_server.url) as bus:
        await bus.link.call("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(BusUnavailable, match=r"OOM|memory"):
            await bus.put("k", b"x", 60)
        with pytest.raises(BusUnavailable):
            await bus.put_and_publish("k", b"x", 60, work())
        assert await bus.get("k") is None


async def test_killed_and_restarted(redis_server: RedisServer) -> None:
    async with opened(redis_server.url, timeout=0.5) as bus, consume(bus) as batches:
        await bus.publish(work(1))
        await bus.acknowledge(await anext(batches))
        reading = asyncio.create_task(anext(batches))
        redis_server.kill()
        with pytest.raises(BusUnavailable):
            await bus.publish(work(2))
        with pytest.raises(BusUnavailable):
            await bus.get("k")
        assert not reading.done()
        redis_server.start()
        await bus.publish(work(3))
        # The stream and its group were lost with the server: the consumer made the group again.
        (delivery,) = await reading
        assert delivery.work.request_id == "r3"
        await bus.acknowledge([delivery])
        assert await pending(bus) == 0
