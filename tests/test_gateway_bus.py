"""The gateway without Redis, without tokens, and what it says of its health."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from tests.fakes import Gate, expected_sight, qformer_service
from tests.gateways import (
    WORDS,
    Scene,
    content_of,
    is_ready,
    metric_counts,
    metric_is,
    picture,
    scene,
    shown,
    until,
)
from tests.redis_server import RedisServer
from ziya import keys
from ziya.errors import VisualTokensMissing

RED = picture("red")
SEEN = f"[{expected_sight(RED)}]{WORDS}"


@pytest.fixture
async def here(redis_url: str, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(redis_url, tmp_path) as made:
        yield made


async def test_redis_down_goes_inline_and_comes_back(redis_server: RedisServer, tmp_path: Path) -> None:
    async with scene(redis_server.url, tmp_path) as here:
        redis_server.kill()
        assert await content_of(here.ask(shown(RED))) == SEEN
        assert here.behind.triton.asked[-1].inline
        assert await here.metric("ziya_gateway_inline_total") == 1
        assert await here.metric("ziya_gateway_bus_up") == 0
        redis_server.start()
        await until(lambda: metric_is(here, "ziya_gateway_bus_up", 1))
        assert await content_of(here.ask(shown(RED))) == SEEN
        assert not here.behind.triton.asked[-1].inline


async def test_redis_down_and_only_an_image_id(redis_server: RedisServer, tmp_path: Path) -> None:
    async with scene(redis_server.url, tmp_path) as here:
        redis_server.kill()
        with pytest.raises(openai.NotFoundError, match="send the image again"):
            await here.ask([{"type": "image_id", "image_id": keys.image_id(RED)}])


async def test_redis_that_dies_while_tokens_are_awaited(redis_server: RedisServer, tmp_path: Path) -> None:
    async with scene(redis_server.url, tmp_path) as here:
        gate = here.behind.vision.behaviour.gate = Gate()
        question = asyncio.create_task(here.ask(shown(RED)))
        await gate.reached.wait()
        await here.behind.triton.behaviour.entered.wait()
        redis_server.kill()
        gate.is_open.set()
        assert await content_of(question) == SEEN
        assert here.behind.triton.asked[-1].inline


async def test_an_answer_that_overtakes_the_encoders_reply_was_not_cached(here: Scene) -> None:
    here.behind.vision.before_reply = Gate()
    answer = await here.ask(shown(RED))
    assert here.behind.vision.before_reply.reached.is_set()
    assert not here.behind.vision.before_reply.is_open.is_set()
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert [image["cached"] for image in answer.model_extra["ziya"]["images"]] == [False]


async def test_tokens_that_vanish_are_made_inline(here: Scene) -> None:
    here.behind.triton.behaviour.errors = [VisualTokensMissing("the bytes are gone")]
    assert await content_of(here.ask(shown(RED))) == SEEN
    assert here.behind.triton.asked[-1].inline


async def test_tokens_that_nobody_makes_are_made_inline(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, gateway_watch_seconds=0.1) as here:
        here.behind.vision.makes_tokens = False
        assert await content_of(here.ask(shown(RED))) == SEEN
        assert here.behind.triton.asked[-1].inline
        assert len(here.behind.qformer.requests) == 1


async def test_dead_qformer_is_waited_for_inline(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, gateway_watch_seconds=0.1) as here:
        here.behind.vision.makes_tokens = False
        await here.behind.qformer_server.stop()
        question = asyncio.create_task(here.ask(shown(RED)))
        await until(lambda: metric_counts(here, "ziya_gateway_retries_total"))
        again = qformer_service(here.behind.qformer, here.behind.qformer_port)
        await again.start()
        try:
            assert await content_of(question) == SEEN
        finally:
            await again.stop()


async def test_busy_model_does_not_send_tokens_inline(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, gateway_watch_seconds=0.05) as here:
        gate = here.behind.triton.behaviour.gate = Gate()
        question = asyncio.create_task(here.ask(shown(RED)))
        await gate.reached.wait()
        await asyncio.sleep(0.2)  # several watches pass, and all of them find the tokens
        gate.is_open.set()
        assert await content_of(question) == SEEN
        assert await here.metric("ziya_gateway_inline_total") == 0
        assert here.behind.triton.opened == 1


async def test_readiness_names_what_is_missing(here: Scene) -> None:
    assert (await here.http.get("/readyz")).json() == {
        "ready": True,
        "stages": {"llama": "ok", "vision": "ok", "qformer": "ok", "redis": "ok"},
    }
    here.behind.triton.ready = False
    await here.behind.qformer_server.stop()
    answer = await here.http.get("/readyz")
    assert answer.status_code == 503
    stages = answer.json()["stages"]
    assert "not ready" in stages["llama"]
    assert "cannot be reached" in stages["qformer"]
    assert stages["vision"] == "ok"
    assert (await here.http.get("/healthz")).status_code == 200


async def test_without_redis_the_gateway_is_still_ready(redis_server: RedisServer, tmp_path: Path) -> None:
    async with scene(redis_server.url, tmp_path) as here:
        await until(lambda: is_ready(here))
        redis_server.kill()
        answer = await here.http.get("/readyz")
        assert answer.status_code == 200
        assert "Redis" in answer.json()["stages"]["redis"]
