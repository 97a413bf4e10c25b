"""Work that nobody waits for any more is taken off the bus, and what is spoilt there is thrown away."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from protos.vision_pb2 import EncodeReply, EncodeRequest
from tests.bus_words import consume, first, pending, work
from tests.chaos.proxy import Proxy
from tests.encoders import packed, picture, random_features, running_qformer, running_vision
from tests.fakes import expected_sight, features_of, pack_tokens, tokens_of
from tests.gateways import WORDS, content_of, scene, shown, until
from tests.gateways import picture as plain_picture
from ziya import rpc
from ziya.bus import WORK, Announcements, Bus
from ziya.content import ContentKeys
from ziya.errors import InvalidEnvelope, VisualTokensSpoilt
from ziya.keys import image_id
from ziya.redis_link import LARGEST_VALUE
from ziya.wire import Stage, unpack
from ziya.work_stream import READY

RED = plain_picture("red")


async def encode(stub: object, image: bytes) -> EncodeReply:
    return await rpc.call(stub.Encode, EncodeRequest(image=image), deadline=time.time() + 30)


async def empty(bus: Bus) -> None:
    """Returns when nothing is queued."""
    async with asyncio.timeout(10):
        while await bus.backlog():
            await asyncio.sleep(0.005)


async def test_withdrawn_work_is_not_delivered(bus: Bus) -> None:
    gone = await bus.publish(work(1))
    await bus.publish(work(2))
    await bus.withdraw([gone])
    assert [delivery.work.request_id for delivery in await first(bus)] == ["r2"]
    assert await bus.backlog() == 1


async def test_work_withdrawn_after_it_was_read_is_known_and_told_to_nobody(bus: Bus) -> None:
    await bus.publish(work(1))
    await bus.publish(work(2))
    async with consume(bus) as batches:
        one, two = await anext(batches)
        await bus.withdraw([one.id])
        assert await bus.wanted([one, two]) == [False, True]
        await bus.finish([(one, None), (two, b"tokens")], ttl=60)
    assert (await bus.backlog(), await pending(bus)) == (0, 0)
    announced = [fields[1] for _, fields in await bus.link.call("XRANGE", READY, "-", "+")]
    assert announced == [b"ziya:tokens:2"]


async def test_of_an_endless_value_no_more_is_read_than_an_envelope_may_have(bus: Bus) -> None:
    await bus.put("k", bytes(LARGEST_VALUE + 1000), ttl=60)
    data = await bus.get("k")
    assert data is not None
    assert len(data) == LARGEST_VALUE + 1
    with pytest.raises(InvalidEnvelope, match="larger than"):
        unpack(data, stage=Stage.TOKENS, fingerprint="x", shape=(4, 6))
    waiting = Announcements(bus, largest=100)
    await waiting.start()
    assert len(await waiting.wait("k", time.time() + 10)) == 101
    await waiting.close()


async def test_a_value_of_another_kind_is_found_and_is_no_envelope(bus: Bus) -> None:
    await bus.link.call("RPUSH", "list", "x")
    await bus.put("k", b"x", ttl=60)
    found = await bus.get_many(["list", "none", "k"])
    assert found[1:] == [None, b"x"]
    with pytest.raises(InvalidEnvelope):
        unpack(found[0] or b"", stage=Stage.TOKENS, fingerprint="x", shape=(4, 6))


async def test_the_only_one_who_asked_is_told_what_to_take_back(
    tiny_checkpoint: Path, redis_url: str, bus: Bus
) -> None:
    async with running_vision(tiny_checkpoint, redis_url) as vision:
        alone = await encode(vision.stub, picture(1))
        together = await asyncio.gather(*(encode(vision.stub, picture(2)) for _ in range(3)))
    entries = [entry.decode() for entry, _ in await bus.link.call("XRANGE", WORK, "-", "+")]
    assert alone.work_id == entries[0]
    assert len(entries) == 2
    assert {reply.work_id for reply in together} == {""}


async def test_a_caller_who_leaves_while_work_is_being_queued_leaves_none(
    tiny_checkpoint: Path, redis_url: str, bus: Bus, short_folder: Path
) -> None:
    way = Proxy(short_folder, Path(redis_url.removeprefix("unix://")))
    way.start()
    way.delay = 0.3  # Redis has the work for so long before the service hears of it
    try:
        async with running_vision(tiny_checkpoint, way.url) as vision:
            call = vision.stub.Encode(EncodeRequest(image=picture(1)))
            async with asyncio.timeout(20):
                while not await bus.backlog():
                    await asyncio.sleep(0.005)
            call.cancel()
            await empty(bus)
    finally:
        way.close()


async def test_the_qformer_does_not_work_on_what_was_withdrawn(tiny_checkpoint: Path, redis_url: str, bus: Bus) -> None:
    keys = ContentKeys.load(tiny_checkpoint)
    features_key = keys.features("image")
    asked = work(1)
    asked = type(asked)(features_key, keys.tokens(features_key, ""), "", asked.deadline, "test")
    await bus.put(features_key, packed(keys, random_features(0)), 60)
    entry = await bus.publish(asked)
    # As if a frozen consumer had read it: pending, and withdrawn meanwhile.
    assert len(await first(bus, "frozen")) == 1
    await bus.publish(work(2))
    batch = await first(bus, "frozen")
    await bus.withdraw([entry, batch[0].id])
    async with running_qformer(tiny_checkpoint, redis_url, qformer_claim_idle=0.05) as qformer:
        async with asyncio.timeout(10):
            while await pending(bus):
                await asyncio.sleep(0.01)
        assert qformer.metric("works_total", outcome="done") == 0
    assert await bus.get(asked.tokens_key) is None


@pytest.mark.parametrize("text_came", [False, True])
async def test_a_client_that_leaves_takes_its_work_along(redis_url: str, tmp_path: Path, text_came: bool) -> None:
    async with scene(redis_url, tmp_path) as here:
        entry = await here.behind.bus.publish(work(1))
        here.behind.vision.work_id = entry
        here.behind.vision.makes_tokens = text_came
        question = asyncio.create_task(content_of(here.ask(shown(RED))))
        if text_came:  # then it has been used, and is the Q-Former's to finish
            assert WORDS in await question
            assert await here.behind.bus.backlog() == 1
            return
        await here.behind.triton.behaviour.entered.wait()
        await until(lambda: _answered(here.behind.vision))
        await asyncio.sleep(0.05)  # the reply reaches the gateway
        question.cancel()
        await empty(here.behind.bus)


async def test_spoilt_tokens_are_thrown_away(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as here:
        content, bus = here.behind.vision.content, here.behind.bus
        features_key = content.features(image_id(RED))
        keys = [features_key, content.tokens(features_key, "What is this?")]
        for key in keys:
            await bus.put(key, pack_tokens(tokens_of(features_of(image_id(RED)))), 60)
        here.behind.triton.behaviour.errors = [VisualTokensSpoilt("it fails its checksum")]
        assert await content_of(here.ask(shown(RED))) == f"[{expected_sight(RED)}]{WORDS}"
        assert here.behind.triton.asked[-1].inline
        assert await bus.get_many(keys) == [None, None]


async def _answered(vision: object) -> bool:
    return bool(vision.answered)
