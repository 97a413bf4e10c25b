"""Waiting for tokens on a real Redis: before, after, error, gone, too late, and when Redis dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from tests.redis_server import RedisServer
from ziya.bus import Announcements, Bus
from ziya.errors import BusUnavailable, DeadlineExceeded, InvalidImage, VisualTokensMissing

KEY = "ziya:tokens:x"


@pytest.fixture
async def announcements(bus: Bus) -> AsyncIterator[Announcements]:
    announcements = Announcements(bus)
    await announcements.start()
    yield announcements
    await announcements.close()


def soon() -> float:
    return time.time() + 20


async def test_tokens_that_are_there_already(bus: Bus, announcements: Announcements) -> None:
    await bus.put(KEY, b"tokens", ttl=60)
    assert await announcements.wait(KEY, soon()) == b"tokens"


async def test_tokens_announced_while_waiting(bus: Bus, announcements: Announcements) -> None:
    waiting = asyncio.create_task(announcements.wait(KEY, soon()))
    await announced_to_another(bus, announcements)
    assert not waiting.done()
    await bus.deliver(KEY, b"tokens", ttl=60)
    assert await waiting == b"tokens"


async def test_many_wait_for_one_key_and_one_for_each_of_many(bus: Bus, announcements: Announcements) -> None:
    same = [asyncio.create_task(announcements.wait(KEY, soon())) for _ in range(20)]
    each = [asyncio.create_task(announcements.wait(f"k{n}", soon())) for n in range(20)]
    await announced_to_another(bus, announcements)
    await asyncio.gather(bus.deliver(KEY, b"same", 60), *(bus.deliver(f"k{n}", b"%d" % n, 60) for n in range(20)))
    assert await asyncio.gather(*same) == [b"same"] * 20
    assert await asyncio.gather(*each) == [b"%d" % n for n in range(20)]


async def test_an_error_announced_while_waiting(bus: Bus, announcements: Announcements) -> None:
    waiting = asyncio.create_task(announcements.wait(KEY, soon()))
    await announced_to_another(bus, announcements)
    await bus.announce(KEY, InvalidImage("这不是图片"))
    with pytest.raises(InvalidImage, match="这不是图片"):
        await waiting


async def test_an_error_announced_before_anyone_waits_is_told_once(bus: Bus, announcements: Announcements) -> None:
    await bus.announce(KEY, InvalidImage("too early"))
    await announced_to_another(bus, announcements)
    with pytest.raises(InvalidImage, match="too early"):
        await announcements.wait(KEY, soon())
    # The next request computes again, and must not meet the old error.
    with pytest.raises(DeadlineExceeded):
        await announcements.wait(KEY, time.time() + 0.05)


async def test_an_announced_expiry_is_not_told_to_who_has_time_left(bus: Bus, announcements: Announcements) -> None:
    waiting = asyncio.create_task(announcements.wait(KEY, soon()))
    await announced_to_another(bus, announcements)
    await bus.announce(KEY, DeadlineExceeded("the first asker's time was over"))
    with pytest.raises(VisualTokensMissing, match="the first asker's time was over"):
        await waiting


async def test_tokens_that_are_there_count_more_than_an_old_error(bus: Bus, announcements: Announcements) -> None:
    await bus.announce(KEY, InvalidImage("before"))
    await announced_to_another(bus, announcements)
    await bus.put(KEY, b"tokens", ttl=60)
    assert await announcements.wait(KEY, soon()) == b"tokens"


async def test_tokens_gone_between_announcement_and_use(bus: Bus, announcements: Announcements) -> None:
    waiting = asyncio.create_task(announcements.wait(KEY, soon()))
    await announced_to_another(bus, announcements)
    await bus.announce(KEY)
    with pytest.raises(VisualTokensMissing, match=KEY):
        await waiting


@pytest.mark.parametrize("seconds", [-1.0, 0.05], ids=["already over", "over while waiting"])
async def test_the_deadline(announcements: Announcements, seconds: float) -> None:
    with pytest.raises(DeadlineExceeded):
        await announcements.wait(KEY, time.time() + seconds)


async def test_a_cancelled_waiter_leaves_the_others(bus: Bus, announcements: Announcements) -> None:
    one, other = (asyncio.create_task(announcements.wait(KEY, soon())) for _ in range(2))
    await announced_to_another(bus, announcements)
    one.cancel()
    await bus.deliver(KEY, b"tokens", ttl=60)
    assert await other == b"tokens"
    assert one.cancelled()


async def test_what_was_announced_before_the_start_is_not_read_again(bus: Bus) -> None:
    await bus.announce(KEY, InvalidImage("of a former life"))
    announcements = Announcements(bus)
    await announcements.start()
    with pytest.raises(DeadlineExceeded):
        await announcements.wait(KEY, time.time() + 0.05)
    await announcements.close()


async def test_closing_ends_the_waiting(bus: Bus) -> None:
    announcements = Announcements(bus)
    await announcements.start()
    waiting = asyncio.create_task(announcements.wait(KEY, soon()))
    await announced_to_another(bus, announcements)
    await announcements.close()
    with pytest.raises(BusUnavailable):
        await waiting


async def test_a_foreign_entry_does_not_stop_the_reader(bus: Bus, announcements: Announcements) -> None:
    await bus.link.call("XADD", "ziya:ready", "*", b"\xff", b"\xfe", "key", b"\xff\xfe")
    waiting = asyncio.create_task(announcements.wait(KEY, soon()))
    await announced_to_another(bus, announcements)
    await bus.deliver(KEY, b"tokens", ttl=60)
    assert await waiting == b"tokens"


async def test_who_listens_is_told_while_it_listens_of_its_own_key(bus: Bus, announcements: Announcements) -> None:
    told: list[str] = []
    await bus.announce("ziya:left:before")
    await announced_to_another(bus, announcements)
    with announcements.listening("ziya:left:before", lambda: told.append("too early")):
        with announcements.listening(KEY, lambda: told.append("one")):
            with announcements.listening(KEY, lambda: told.append("other")):
                await bus.announce("ziya:left:foreign")
                await bus.announce(KEY)
                await announced_to_another(bus, announcements)
            await bus.announce(KEY)
            await announced_to_another(bus, announcements)
        await bus.announce(KEY)
        await announced_to_another(bus, announcements)
    assert told == ["one", "other", "one"]


async def test_redis_dies_and_comes_back(redis_server: RedisServer) -> None:
    bus = Bus(redis_server.url, timeout=1.0)
    announcements = Announcements(bus)
    await announcements.start()
    waiting = asyncio.create_task(announcements.wait(KEY, soon()))
    await announced_to_another(bus, announcements)
    redis_server.kill()
    with pytest.raises(BusUnavailable):
        await waiting
    with pytest.raises(BusUnavailable):
        await announcements.wait(KEY, soon())
    assert not announcements.is_read
    redis_server.start()
    assert await _when_back(announcements, bus) == b"tokens"
    assert announcements.is_read
    await announcements.close()
    await bus.close()


async def test_redis_may_be_down_at_the_start(redis_server: RedisServer) -> None:
    redis_server.kill()
    bus = Bus(redis_server.url, timeout=1.0)
    announcements = Announcements(bus)
    await announcements.start()
    with pytest.raises(BusUnavailable):
        await announcements.wait(KEY, soon())
    redis_server.start()
    assert await _when_back(announcements, bus) == b"tokens"
    await announcements.close()
    await bus.close()


async def announced_to_another(bus: Bus, announcements: Announcements) -> None:
    """Returns when everything begun before has reached the reader: a further key has come all the way."""
    marker = asyncio.create_task(announcements.wait("marker", soon()))
    await asyncio.sleep(0)
    await bus.announce("marker", InvalidImage("marker"))
    with pytest.raises(InvalidImage, match="marker"):
        await marker


async def _when_back(announcements: Announcements, bus: Bus) -> bytes:
    """The tokens, as soon as waiting is possible again; until then every try must fail at once, and clearly."""
    async with asyncio.timeout(20):
        while True:
            waiting = asyncio.create_task(announcements.wait(KEY, soon()))
            done, _ = await asyncio.wait([waiting], timeout=0.1)
            if not done:
                await bus.deliver(KEY, b"tokens", ttl=60)
                return await waiting
            assert isinstance(waiting.exception(), BusUnavailable)
