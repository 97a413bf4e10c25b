"""The limits of a key: by a real Redis over several gateways, and by each alone when Redis is away."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import redis.asyncio
from prometheus_client import CollectorRegistry

from services.gateway.admission.cost import Cost
from services.gateway.admission.metrics import AdmissionMetrics
from services.gateway.keys import quotas
from services.gateway.keys.key_entry import Key, Limits, digest_of
from services.gateway.keys.quotas import Grant, Quotas, QuotaTimes
from tests.gateways import WORDS, Scene, content_of, picture, scene, shown, until
from tests.redis_server import RedisServer
from ziya.errors import BadField, RateLimited
from ziya.redis_link import RedisLink
from ziya.telemetry import Metrics

NAME = "ziya:quota:k"


@dataclass
class Desk:
    """The quotas of one gateway."""

    quotas: Quotas
    registry: CollectorRegistry

    async def take(self, limits: Limits, images: int = 0, tokens: int = 1) -> Grant:
        return await self.quotas.take(Key("k", limits=limits), Cost(images, tokens))

    def fell_back(self, reason: str) -> float:
        return self.registry.get_sample_value("ziya_gateway_quota_fallback_total", {"reason": reason}) or 0.0

    def shed(self, reason: str) -> float:
        return self.registry.get_sample_value("ziya_gateway_shed_total", {"reason": reason}) or 0.0


@asynccontextmanager
async def desk(url: str, **times: float) -> AsyncIterator[Desk]:
    link, metrics = RedisLink(url, timeout=2.0), Metrics("gateway")
    made = Quotas(link, AdmissionMetrics(metrics), QuotaTimes(**({"patience": 2.0} | times)))
    try:
        yield Desk(made, metrics.registry)
    finally:
        await made.close()
        await link.close()


@pytest.fixture
async def one(redis_url: str) -> AsyncIterator[Desk]:
    async with desk(redis_url) as made:
        yield made


@pytest.fixture
async def other(redis_url: str) -> AsyncIterator[Desk]:
    async with desk(redis_url) as made:
        yield made


@pytest.fixture
async def raw(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        yield client


async def refused(here: Desk, limits: Limits, **cost: int) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        await here.take(limits, **cost)
    return caught.value


# Rates


@pytest.mark.parametrize("unit", ["images", "tokens"])
async def test_a_rate_holds_over_all_gateways(one: Desk, other: Desk, unit: str) -> None:
    limits = Limits(**{unit: 6})
    for here in (one, other, one):
        await here.take(limits, **{unit: 2})
    for here in (one, other):
        error = await refused(here, limits, **{unit: 2})
        assert f"6 {unit} a minute" in str(error)
        assert 18 < error.retry_after <= 20  # two units come back in twenty seconds
        assert error.limits[f"x-ratelimit-remaining-{unit}"] == "0"
        assert here.shed(f"key_{unit}") == 1
        assert here.fell_back("unavailable") == here.fell_back("slow") == 0


async def test_what_a_limit_refuses_takes_nothing_of_the_others(one: Desk, raw: redis.asyncio.Redis) -> None:
    limits = Limits(images=10, tokens=100, concurrent=5)
    await one.take(limits, images=1, tokens=95)
    before = await raw.zrange(NAME, 0, -1, withscores=True)
    await refused(one, limits, images=1, tokens=50)
    assert await raw.zrange(NAME, 0, -1, withscores=True) == before


async def test_units_come_back_with_time(one: Desk) -> None:
    limits = Limits(images=600)  # ten a second
    await one.take(limits, images=600)
    await refused(one, limits, images=1)
    await asyncio.sleep(0.25)
    await one.take(limits, images=2)
    await refused(one, limits, images=2)


async def test_headers_say_how_the_limits_stand(one: Desk) -> None:
    grant = await one.take(Limits(images=60, tokens=1000), images=6, tokens=250)
    assert grant.headers["x-ratelimit-limit-images"] == "60"
    assert grant.headers["x-ratelimit-remaining-images"] == "54"
    assert grant.headers["x-ratelimit-remaining-tokens"] == "750"
    assert grant.headers["x-ratelimit-reset-tokens"] == "15.000s"


async def test_what_was_not_used_is_given_back(one: Desk, raw: redis.asyncio.Redis) -> None:
    limits = Limits(images=10, tokens=100)
    with await one.take(limits, images=10, tokens=100) as grant:
        grant.spent = Cost(images=4, tokens=70)
    await settled(one)
    headers = (await one.take(limits, images=0, tokens=1)).headers
    assert headers["x-ratelimit-remaining-images"] == "6"
    assert headers["x-ratelimit-remaining-tokens"] == "29"
    # More than was thought is taken, too.
    with await one.take(limits, tokens=1) as grant:
        grant.spent = Cost(tokens=90)
    await settled(one)
    await refused(one, limits, tokens=1)


async def settled(here: Desk) -> None:
    """Returns when what has ended is with Redis."""
    await here.quotas.close()


async def test_a_refused_request_leaves_redis_as_it_was(one: Desk, raw: redis.asyncio.Redis) -> None:
    with await one.take(Limits(images=10, tokens=10, concurrent=1), images=3, tokens=5):
        assert len(await raw.zrange(NAME, 0, -1)) == 3
    await settled(one)
    assert await raw.exists(NAME) == 0


async def test_what_can_never_be_kept_is_the_requests_fault(one: Desk) -> None:
    with pytest.raises(BadField, match=r"may take 11 tokens, and the key k has 10 a minute") as caught:
        await one.take(Limits(tokens=10), tokens=11)
    assert caught.value.param == "max_tokens"


async def test_a_key_without_limits_never_asks_redis(redis_server: RedisServer) -> None:
    redis_server.kill()
    async with desk(redis_server.url) as here:
        with await here.take(Limits(), images=5, tokens=5) as grant:
            assert grant.headers == {}
        assert here.fell_back("unavailable") == 0


# Leases


async def test_concurrency_holds_over_all_gateways(one: Desk, other: Desk) -> None:
    limits = Limits(concurrent=2)
    with await one.take(limits):
        with await other.take(limits):
            for here in (one, other):
                error = await refused(here, limits)
                assert "2 requests in flight" in str(error)
                assert here.shed("key_concurrent") == 1
        await settled(other)
        with await one.take(limits):
            pass


async def test_a_killed_gateway_leaves_nothing_behind(redis_url: str, raw: redis.asyncio.Redis) -> None:
    limits = Limits(concurrent=2)
    async with desk(redis_url, lease=0.6) as killed, desk(redis_url, lease=0.6) as peer:
        await killed.take(limits)
        await peer.take(limits)  # goes on, so that the account is never forgotten as a whole
        await refused(peer, limits)
        # It goes on: its lease is renewed, several times over.
        await asyncio.sleep(1.5)
        await refused(peer, limits)
        assert killed.quotas._task is not None
        killed.quotas._task.cancel()
        killed.quotas._task = None
        await until(lambda: takes(peer, limits))
        assert 0 < await raw.pttl(NAME) < 75_000


async def test_who_leaves_while_redis_is_asked_holds_no_lease(redis_server: RedisServer) -> None:
    limits = Limits(concurrent=1)
    async with desk(redis_server.url, lease=1000) as here:
        with await here.take(limits):  # so that it is connected
            pass
        await settled(here)
        redis_server.freeze()
        leaving = asyncio.create_task(here.take(limits))
        await asyncio.sleep(0.05)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        redis_server.thaw()
        await until(lambda: takes(here, limits))


async def takes(here: Desk, limits: Limits) -> bool:
    try:
        await here.take(limits)
    except RateLimited:
        return False
    return True


async def test_leases_are_there_again_when_redis_was_emptied(redis_url: str, raw: redis.asyncio.Redis) -> None:
    limits = Limits(concurrent=1)
    async with desk(redis_url, lease=0.3) as here, desk(redis_url) as peer:
        with await here.take(limits):
            await raw.flushall()
            await until(lambda: exists(raw))
            await refused(peer, limits)
        await settled(here)
        with await peer.take(limits):
            pass


async def exists(raw: redis.asyncio.Redis) -> bool:
    return bool(await raw.exists(NAME))


# Without Redis


async def test_without_redis_each_gateway_keeps_the_limits_alone(redis_server: RedisServer) -> None:
    limits = Limits(images=10, tokens=1000, concurrent=2)
    async with desk(redis_server.url) as here:
        first = await here.take(limits, images=4)
        redis_server.kill()
        # What Redis knew is remembered: six images are left, not ten.
        with await here.take(limits, images=6) as grant:
            grant.spent = Cost(images=6)
            assert here.fell_back("unavailable") == 1
            assert "2 requests in flight" in str(await refused(here, limits))
        error = await refused(here, limits, images=1)
        assert "10 images a minute" in str(error)
        assert here.fell_back("paused") >= 1
        first.spent = Cost(images=4)
        first.__exit__(None, None, None)


async def test_redis_is_asked_again_when_it_is_back(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "PAUSE_SECONDS", 0.05)
    limits = Limits(images=100)
    async with desk(redis_server.url) as here:
        redis_server.kill()
        with await here.take(limits, images=50) as grant:
            grant.spent = Cost(images=50)
        redis_server.start()

        async def asks_redis() -> bool:
            before = here.fell_back("unavailable") + here.fell_back("paused")
            await here.take(limits, images=1)
            return here.fell_back("unavailable") + here.fell_back("paused") == before

        await until(asks_redis)
        # What was granted without Redis does not come off, or back, there.
        async with redis.asyncio.Redis.from_url(redis_server.url) as client:
            assert await client.zscore(NAME, "images") is not None
        await settled(here)
        headers = (await here.take(limits, images=1)).headers
        assert int(headers["x-ratelimit-remaining-images"]) <= 98


async def test_a_frozen_redis_delays_one_request_and_fails_none(redis_server: RedisServer) -> None:
    limits = Limits(images=3, concurrent=5)
    async with desk(redis_server.url, patience=0.1) as here:
        await here.take(limits, images=1)
        redis_server.freeze()
        try:
            async with asyncio.timeout(5):
                await here.take(limits, images=1)
                await here.take(limits, images=1)
                await refused(here, limits, images=1)
        finally:
            redis_server.thaw()
        assert here.fell_back("slow") == 1
        assert here.fell_back("paused") == 2


async def test_a_full_redis_fails_no_request_and_keeps_the_limit(short_folder: Path) -> None:
    server = RedisServer(short_folder, "--maxmemory", "1", "--maxmemory-policy", "noeviction")
    server.start()
    try:
        async with desk(server.url) as here:
            with await here.take(Limits(images=1), images=1):
                await refused(here, Limits(images=1), images=1)
    finally:
        server.kill()


# Through the gateways


def entry(name: str, **limits: int) -> str:
    return json.dumps({"name": name, "sha256": digest_of(f"{name}-key"), **limits})


async def test_a_keys_limit_is_its_own_and_says_when_to_come_back(redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\n".join([entry("small", images_per_minute=2, tokens_per_minute=5000), entry("free")]), "utf-8")
    async with scene(redis_url, tmp_path, gateway_api_keys_file=file, gateway_quota_seconds=2) as here:
        answer = await ask(here, "small")
        assert answer.headers["x-ratelimit-remaining-images"] == "1"
        assert answer.headers["x-ratelimit-limit-tokens"] == "5000"
        await ask(here, "small")
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(here, "small")
        assert caught.value.code == "rate_limit_exceeded"
        assert int(caught.value.response.headers["retry-after"]) in (29, 30)
        assert caught.value.response.headers["x-ratelimit-remaining-images"] == "0"
        assert "x-ratelimit-limit-images" not in (await ask(here, "free")).headers


async def ask(here: Scene, name: str, **options: Any) -> Any:
    client = here.client.with_options(api_key=f"{name}-key").chat.completions.with_raw_response
    messages: Any = [{"role": "user", "content": shown(picture())}]
    return await client.create(model="ziya-visual", messages=messages, **options)


async def test_what_an_answer_really_took_is_what_it_costs(redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(entry("small", tokens_per_minute=600), "utf-8")
    async with scene(redis_url, tmp_path, gateway_api_keys_file=file, gateway_quota_seconds=2) as here:
        # Each asks for most of the limit and uses little of it.
        for _ in range(3):
            await ask(here, "small", max_tokens=450)
            await until(lambda: settled_in(redis_url))


async def settled_in(url: str) -> bool:
    """Whether the bucket holds what an answer took, and not what it might have taken: below 200 of 600 tokens."""
    async with redis.asyncio.Redis.from_url(url) as client:
        seconds, microseconds = await client.time()
        full = await client.zscore("ziya:quota:small", "tokens") or 0.0
    return bool(full / 1000 - seconds - microseconds / 1e6 < 20)


async def test_no_request_fails_for_its_quota_when_redis_dies(redis_server: RedisServer, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(entry("k", images_per_minute=1000, concurrent=100), "utf-8")
    async with scene(redis_server.url, tmp_path, gateway_api_keys_file=file) as here:
        client = here.client.with_options(api_key="k-key")

        async def one(text: str) -> str:
            messages: Any = [{"role": "user", "content": text}]
            return await content_of(client.chat.completions.create(model="ziya-visual", messages=messages))

        assert await one("before") == WORDS
        redis_server.kill()
        assert set(await asyncio.gather(*(one(str(number)) for number in range(20)))) == {WORDS}
        page = (await here.http.get(f"http://127.0.0.1:{here.gateway.metrics_port}/metrics")).text
        counted = re.findall(r"^ziya_gateway_quota_fallback_total\{.*\} (.*)$", page, re.MULTILINE)
        assert sum(map(float, counted)) == 20
