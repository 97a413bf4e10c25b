"""Hostile entries on the bus: of the work stream and of the announcements, read from a real Redis."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tests.fuzz.check import Hang, Outcome, Target
from tests.fuzz.strategies import TEXTS
from tests.redis_server import RedisServer
from ziya.bus import READY, WORK, Announcements, Bus
from ziya.errors import VisualTokensMissing
from ziya.work_stream import Work

SECONDS = 10.0
_NAMES = st.sampled_from([b"features_key", b"tokens_key", b"instruction", b"deadline", b"request_id", b"traceparent"])
_NAMES |= st.sampled_from([b"key", b"error", b"self", b"cls", b"__class__"]) | st.binary(max_size=6)
_VALUES = st.sampled_from(
    [b"nan", b"inf", b"1e999", b"1", b"", b"\xff\xfe", b"\x80\x04N.", b"Internal: x", b": : ", b"ZiyaError"]
)
_VALUES |= TEXTS.map(str.encode) | st.binary(max_size=40)
_GOOD = {name.encode(): b"1" for name in ("features_key", "tokens_key", "instruction", "deadline", "request_id")}


@st.composite
def _nearly_good(draw: DrawFn) -> dict[bytes, bytes]:
    """What `Work.fields` writes, with fields left out, put in or changed."""
    fields = {**_GOOD, **draw(st.dictionaries(_NAMES, _VALUES, max_size=2))}
    for name in draw(st.lists(st.sampled_from(sorted(_GOOD)), max_size=1)):
        fields.pop(name)
    return fields


_FIELDS = _nearly_good() | st.dictionaries(_NAMES, _VALUES, min_size=1, max_size=8)
ENTRIES = st.lists(_FIELDS, min_size=1, max_size=3)


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    """Adds entries, and then a good one: it must still be read. The Redis is its own, with no Q-Former."""
    server = RedisServer(folder)
    server.start()
    try:
        with asyncio.Runner() as runner:
            bus = runner.run(_bus(server.url))
            announcements = Announcements(bus)
            runner.run(announcements.start())
            yield Target("bus entries", ENTRIES, _feeding(runner, bus, announcements))
            runner.run(announcements.close())
            runner.run(bus.close())
    finally:
        server.kill()


async def _bus(url: str) -> Bus:
    return Bus(url)


def _feeding(runner: asyncio.Runner, bus: Bus, announcements: Announcements) -> Callable[[object], Outcome]:
    async def work(entries: list[dict[bytes, bytes]], good: Work) -> bool:
        for fields in entries:
            flat = [text for pair in fields.items() for text in pair]
            await bus.link.call("XADD", WORK, "*", *flat)
            await bus.link.call("XADD", READY, "*", *flat)
        await bus.publish(good)
        hostile = False
        async with aclosing(bus.consume("fuzz", "reader", count=16)) as batches:
            async for batch in batches:
                await bus.acknowledge(batch)
                hostile |= any(delivery.work != good for delivery in batch)
                if any(delivery.work == good for delivery in batch):
                    return hostile
        return hostile

    async def announced(entries: list[dict[bytes, bytes]], key: str) -> bool:
        waiting = asyncio.create_task(announcements.wait(key, time.time() + SECONDS))
        await asyncio.sleep(0)
        hostile = await work(entries, Work("ziya:features:x", key, "", time.time() + 60, key))
        await bus.announce(key, VisualTokensMissing("as asked"))
        try:
            await waiting
        except VisualTokensMissing:
            return hostile
        return False

    def feed(entries: object) -> Outcome:
        assert isinstance(entries, list)
        key = f"ziya:tokens:{uuid.uuid4().hex}"
        try:
            taken = runner.run(asyncio.wait_for(announced(entries, key), SECONDS))
        except TimeoutError:
            raise Hang("a good entry behind hostile ones was not read") from None
        return Outcome.ANSWERED if taken else Outcome.REFUSED

    return feed
