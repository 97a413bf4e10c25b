"""What a gateway tells of the pace of its answers, by either face, and where it tells it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from protos import chat_pb2 as pb
from protos.chat_pb2_grpc import VisualChatStub
from tests.fakes import Gate
from tests.gateways import WORDS, Scene, content_of, scene, words_of

HELD_SECONDS = 0.3
INTER_TOKEN = "ziya_gateway_inter_token_seconds"


@pytest.fixture
async def here(redis_url: str, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(redis_url, tmp_path) as made:
        yield made


async def answer(here: Scene, face: str) -> str:
    if face == "whole":
        return await content_of(here.ask("hello"))
    if face == "stream":
        return await words_of(here.ask("hello", stream=True))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{here.gateway.grpc_port}") as channel:
        turn = pb.Turn(role=pb.ROLE_USER, parts=[pb.Part(text="hello")])
        return "".join([chunk.text async for chunk in VisualChatStub(channel).Chat(pb.ChatRequest(turns=[turn]))])


async def held(here: Scene, gate: Gate) -> None:
    """The second response is held up from when the gateway has the first one."""
    await gate.reached.wait()
    while not await here.metric("ziya_gateway_first_token_seconds_count"):
        await asyncio.sleep(0.01)
    await asyncio.sleep(HELD_SECONDS)
    gate.is_open.set()


@pytest.mark.parametrize("face", ["whole", "stream", "grpc"])
async def test_the_time_between_tokens_is_that_of_the_responses(here: Scene, face: str) -> None:
    """Six responses of three tokens, the second of which is held up: its time belongs to its three tokens."""
    here.behind.triton.tokens = 3
    gate = here.behind.triton.pause = Gate()
    said, _ = await asyncio.gather(answer(here, face), held(here, gate))
    assert said == WORDS
    count, seconds = await here.metric(f"{INTER_TOKEN}_count"), await here.metric(f"{INTER_TOKEN}_sum")
    whole = await here.metric("ziya_gateway_request_seconds_sum")
    first = await here.metric("ziya_gateway_first_token_seconds_sum")
    assert count == 5 * 3
    assert HELD_SECONDS <= seconds <= whole - first + 1e-5
    assert await slower_than(here, 0.05) >= 3


async def slower_than(here: Scene, seconds: float) -> float:
    """Tokens of answers whose time is above a bound of the histogram's."""
    page = (await here.http.get("/metrics")).text
    below = {
        line.split('"')[1]: float(line.rsplit(" ", 1)[1])
        for line in page.splitlines()
        if line.startswith(f"{INTER_TOKEN}_bucket")
    }
    return below["+Inf"] - below[str(seconds)]


async def test_an_answer_of_one_response_has_no_time_between_tokens(here: Scene) -> None:
    here.behind.triton.words = []
    await here.ask("hello")
    assert await here.metric("ziya_gateway_first_token_seconds_count") == 1
    assert await here.metric(f"{INTER_TOKEN}_count") == 0


async def test_a_model_that_does_not_tell_its_tokens_is_not_measured(here: Scene) -> None:
    here.behind.triton.tokens = None
    assert await answer(here, "whole") == WORDS
    assert await here.metric(f"{INTER_TOKEN}_count") == 0


async def test_the_public_port_may_keep_them_to_itself(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, gateway_http_metrics=False) as here:
        answer = await here.http.get("/metrics")
        assert answer.status_code == 404
        assert answer.json()["error"]["message"] == "GET /metrics: not found"
        assert "/metrics" not in (await here.http.get("/")).text
        inside = await here.http.get(f"http://127.0.0.1:{here.gateway.metrics_port}/metrics")
        assert "ziya_gateway_in_flight 0.0" in inside.text


async def test_the_public_port_shows_them_by_default(here: Scene) -> None:
    assert "ziya_gateway_in_flight 0.0" in (await here.http.get("/metrics")).text
    assert "/metrics" in (await here.http.get("/")).text
