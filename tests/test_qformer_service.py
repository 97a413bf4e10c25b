"""The Q-Former's bus worker, alone and behind vision, on real Redis with random tiny weights."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from protos.qformer_pb2 import Features, QueryRequest
from protos.tensor_pb2 import Tensor
from protos.vision_pb2 import EncodeRequest
from tests.encoders import (
    ATOL,
    direct_tokens,
    packed,
    picture,
    random_features,
    running_qformer,
    running_vision,
    tokens,
)
from tests.redis_server import RedisServer
from ziya import rpc, wire
from ziya.announcements import Announcements
from ziya.bus import Bus, Work
from ziya.content import ContentKeys
from ziya.errors import Unavailable, VisualTokensMissing, VisualTokensSpoilt
from ziya.images import ImageLimits, decode
from ziya.model.vision import VisionEncoder

TTL = 60.0


def work_for(keys: ContentKeys, name: str, instruction: str = "", seconds: float = 30) -> Work:
    features_key = keys.features(name)
    return Work(features_key, keys.tokens(features_key, instruction), instruction, time.time() + seconds, "test")


@pytest.fixture
async def ready(bus: Bus) -> AsyncIterator[Announcements]:
    """Announcements from before the test's first work on."""
    announcements = Announcements(bus)
    await announcements.start()
    yield announcements
    await announcements.close()


async def wait_all(ready: Announcements, works: Sequence[Work]) -> list[bytes | BaseException]:
    waits = (ready.wait(work.tokens_key, time.time() + 30) for work in works)
    return await asyncio.gather(*waits, return_exceptions=True)


async def test_a_batch_from_the_bus_is_the_models(
    tiny_checkpoint: Path, redis_url: str, bus: Bus, ready: Announcements
) -> None:
    keys = ContentKeys.load(tiny_checkpoint)
    works = [work_for(keys, f"image {n}") for n in range(6)]
    for number, work in enumerate(works):
        await bus.put_and_publish(work.features_key, packed(keys, random_features(number)), TTL, work)
    async with running_qformer(tiny_checkpoint, redis_url) as qformer:
        stored = await wait_all(ready, works)
        await qformer_is_idle(bus)
        assert qformer.metric("works_total", outcome="done") == 6
        # What waited on the bus was run together, after the warm-up.
        assert qformer.metric("batch_size_count") == 2
    for number, envelope in enumerate(stored):
        assert isinstance(envelope, bytes)
        expected = direct_tokens(tiny_checkpoint, random_features(number))
        np.testing.assert_allclose(tokens(keys, envelope), expected, atol=ATOL)


async def qformer_is_idle(bus: Bus) -> None:
    """Returns when all work is acknowledged: that comes last, after the announcements."""
    async with asyncio.timeout(30):
        while await bus.backlog():
            await asyncio.sleep(0.005)


async def test_from_an_image_to_announced_tokens(
    tiny_checkpoint: Path, redis_url: str, bus: Bus, ready: Announcements
) -> None:
    keys, image = ContentKeys.load(tiny_checkpoint), picture(1)
    async with running_vision(tiny_checkpoint, redis_url) as vision, running_qformer(tiny_checkpoint, redis_url):
        reply = await rpc.call(vision.stub.Encode, EncodeRequest(image=image))
        envelope = await ready.wait(reply.tokens_key, time.time() + 30)
    vit = VisionEncoder.load(tiny_checkpoint)
    features = vit(vit.preprocessing(decode(image, ImageLimits()))[None])[0]
    np.testing.assert_allclose(tokens(keys, envelope), direct_tokens(tiny_checkpoint, features), atol=ATOL)


async def test_two_instructions_on_one_image(
    tiny_reading_checkpoint: Path, redis_url: str, bus: Bus, ready: Announcements
) -> None:
    checkpoint, image = tiny_reading_checkpoint, picture(2)
    keys, questions = ContentKeys.load(checkpoint), ("what is it?", "这是什么?")
    async with running_vision(checkpoint, redis_url) as vision, running_qformer(checkpoint, redis_url):
        asks = [EncodeRequest(image=image, instruction=question) for question in questions]
        replies = [await rpc.call(vision.stub.Encode, ask) for ask in asks]
        stored = [await ready.wait(reply.tokens_key, time.time() + 30) for reply in replies]
        assert vision.metric("features_total", source="computed") == 1
    assert replies[0].features_key == replies[1].features_key
    vit = VisionEncoder.load(checkpoint)
    features = vit(vit.preprocessing(decode(image, ImageLimits()))[None])[0]
    one, two = (tokens(keys, envelope) for envelope in stored)
    assert np.abs(one - two).max() > 10 * ATOL
    for question, got in zip(questions, (one, two), strict=True):
        np.testing.assert_allclose(got, direct_tokens(checkpoint, features, question), atol=ATOL)


async def test_each_failure_is_announced_and_the_worker_goes_on(
    tiny_checkpoint: Path, redis_url: str, bus: Bus, ready: Announcements
) -> None:
    keys = ContentKeys.load(tiny_checkpoint)
    names = ("corrupted", "missing", "expired", "foreign", "good")
    corrupted, _, expired, foreign, good = works = [work_for(keys, name) for name in names]
    expired = works[2] = work_for(keys, "expired", seconds=-1)
    foreign = works[3] = Work(foreign.features_key, "ziya:tokens:other", "", foreign.deadline, "test")
    envelope = packed(keys, random_features(0))
    for work in (expired, foreign, good):
        await bus.put(work.features_key, envelope, TTL)
    await bus.put(corrupted.features_key, envelope[:-1] + bytes([envelope[-1] ^ 1]), TTL)
    for work in works:
        await bus.publish(work)
    async with running_qformer(tiny_checkpoint, redis_url) as qformer:
        results = await wait_all(ready, works)
        await qformer_is_idle(bus)
        assert qformer.metric("works_total", outcome="DeadlineExceeded") == 1
        assert qformer.metric("works_total", outcome="VisualTokensMissing") == 1
        assert qformer.metric("works_total", outcome="VisualTokensSpoilt") == 1
        assert qformer.metric("envelopes_refused_total") == 1
        after = work_for(keys, "after")
        await bus.put_and_publish(after.features_key, envelope, TTL, after)
        assert await ready.wait(after.tokens_key, time.time() + 30)
    kinds = [VisualTokensSpoilt, VisualTokensMissing, VisualTokensMissing, Unavailable, bytes]
    assert [type(result) for result in results] == kinds


async def test_features_of_other_weights_are_refused(
    tiny_checkpoint: Path, redis_url: str, bus: Bus, ready: Announcements
) -> None:
    work = work_for(ContentKeys.load(tiny_checkpoint), "image")
    alien = wire.pack(random_features(0), stage=wire.Stage.FEATURES, fingerprint="00" * 32)
    await bus.put_and_publish(work.features_key, alien, TTL, work)
    async with running_qformer(tiny_checkpoint, redis_url):
        with pytest.raises(VisualTokensMissing, match="other weights"):
            await ready.wait(work.tokens_key, time.time() + 30)


async def test_a_dead_consumers_work_is_claimed(
    tiny_checkpoint: Path, redis_url: str, bus: Bus, ready: Announcements
) -> None:
    keys = ContentKeys.load(tiny_checkpoint)
    work = work_for(keys, "image")
    await bus.put_and_publish(work.features_key, packed(keys, random_features(3)), TTL, work)
    await read_and_die(bus, work)
    async with running_qformer(tiny_checkpoint, redis_url, qformer_claim_idle=0.1) as qformer:
        envelope = await ready.wait(work.tokens_key, time.time() + 30)
        await qformer_is_idle(bus)
        assert qformer.metric("bus_claimed_total") == 1
    np.testing.assert_allclose(tokens(keys, envelope), direct_tokens(tiny_checkpoint, random_features(3)), atol=ATOL)


async def read_and_die(bus: Bus, work: Work) -> None:
    """Another consumer of the group that takes `work` and never finishes it."""
    async with aclosing(bus.consume("qformer", "dead", count=4)) as dead:
        assert [delivery.work for delivery in await anext(dead)] == [work]


async def test_work_that_is_done_already_is_only_announced(
    tiny_checkpoint: Path, redis_url: str, bus: Bus, ready: Announcements
) -> None:
    keys = ContentKeys.load(tiny_checkpoint)
    work = work_for(keys, "image")
    await bus.put(work.tokens_key, b"the tokens", TTL)
    await bus.publish(work)
    async with running_qformer(tiny_checkpoint, redis_url) as qformer:
        await qformer_is_idle(bus)
        assert qformer.metric("works_total", outcome="cached") == 1
        assert qformer.metric("batch_size_sum") == 1  # the warm-up alone
    assert await ready.wait(work.tokens_key, time.time() + 30) == b"the tokens"


async def test_the_worker_survives_redis(tiny_checkpoint: Path, redis_server: RedisServer) -> None:
    keys = ContentKeys.load(tiny_checkpoint)
    redis_server.kill()
    async with running_qformer(tiny_checkpoint, redis_server.url), own_bus(redis_server.url) as bus:
        for name in ("after the first start", "after a restart"):
            redis_server.start()
            work = work_for(keys, name)
            await bus.put_and_publish(work.features_key, packed(keys, random_features(0)), TTL, work)
            await qformer_is_idle(bus)
            assert await bus.get(work.tokens_key)
            redis_server.kill()


@asynccontextmanager
async def own_bus(url: str) -> AsyncIterator[Bus]:
    bus = Bus(url)
    yield bus
    await bus.close()


async def test_equal_work_is_computed_once(
    tiny_checkpoint: Path, redis_url: str, bus: Bus, ready: Announcements
) -> None:
    keys = ContentKeys.load(tiny_checkpoint)
    work = work_for(keys, "image")
    await bus.put(work.features_key, packed(keys, random_features(0)), TTL)
    for _ in range(3):
        await bus.publish(work)
    async with running_qformer(tiny_checkpoint, redis_url) as qformer:
        assert await ready.wait(work.tokens_key, time.time() + 30)
        await qformer_is_idle(bus)
        assert qformer.metric("works_total", outcome="done") == 3
        assert qformer.metric("batch_size_sum") == 2  # the warm-up, and this


async def test_a_full_redis_loses_no_work(
    tiny_checkpoint: Path, redis_url: str, bus: Bus, ready: Announcements
) -> None:
    keys = ContentKeys.load(tiny_checkpoint)
    work = work_for(keys, "image")
    await bus.put_and_publish(work.features_key, packed(keys, random_features(0)), TTL, work)
    await read_and_die(bus, work)  # and so the group exists: making it would take memory
    await bus.link.call("CONFIG", "SET", "maxmemory", 1)
    try:
        async with running_qformer(tiny_checkpoint, redis_url, qformer_claim_idle=0.5) as qformer:
            async with asyncio.timeout(30):
                while not qformer.metric("works_total", outcome="done"):
                    await asyncio.sleep(0.005)
            assert await bus.get(work.tokens_key) is None
            assert await bus.backlog() == 1
            await bus.link.call("CONFIG", "SET", "maxmemory", 0)
            assert await ready.wait(work.tokens_key, time.time() + 30)
    finally:
        await bus.link.call("CONFIG", "SET", "maxmemory", 0)


async def test_bus_and_calls_share_the_model(
    tiny_checkpoint: Path, redis_url: str, bus: Bus, ready: Announcements
) -> None:
    keys = ContentKeys.load(tiny_checkpoint)
    works = [work_for(keys, f"image {n}") for n in range(4)]
    features = Features(tensor=Tensor(envelope=packed(keys, random_features(9))))
    async with running_qformer(tiny_checkpoint, redis_url) as qformer:
        for work in works:
            await bus.put_and_publish(work.features_key, packed(keys, random_features(9)), TTL, work)
        replies = await asyncio.gather(
            *(rpc.call(qformer.stub.Query, QueryRequest(features=features, inline=True)) for _ in range(4))
        )
        stored = await wait_all(ready, works)
        assert qformer.metric("batch_size_sum") == 9
    expected = direct_tokens(tiny_checkpoint, random_features(9))
    for envelope in [reply.tokens.envelope for reply in replies] + stored:
        np.testing.assert_allclose(tokens(keys, envelope), expected, atol=ATOL)
