"""Options of sampling and shape on their way through the gateway: OpenAI's client and ours in, Triton's JSON out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest

from protos import chat_pb2 as pb
from protos.chat_pb2_grpc import VisualChatStub
from tests.fake_triton import logprob_of
from tests.gateways import WORDS, Scene, scene
from ziya.client import ChatClient, Sampling
from ziya.errors import InvalidRequest
from ziya.prompt import Turn

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"颜色": {"enum": ["红", "蓝"]}}, "required": ["颜色"]}
OPTIONS: dict[str, Any] = {
    "presence_penalty": 1,
    "frequency_penalty": -0.5,
    "logit_bias": {"5": -100, "17": 2.5},
    "seed": 0,
    "response_format": {"type": "json_schema", "json_schema": {"name": "colour", "strict": True, "schema": SCHEMA}},
}


@pytest.fixture
async def here(redis_url: str, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(redis_url, tmp_path) as made:
        yield made


def check_sampling(sampling: dict[str, Any]) -> None:
    """What `OPTIONS` mean in the language model's own words."""
    assert sampling["presence_penalty"] == 1
    assert sampling["frequency_penalty"] == -0.5
    assert sampling["logit_bias"] == {"5": -100, "17": 2.5}
    assert sampling["seed"] == 0
    assert json.loads(sampling["json_schema"]) == SCHEMA


async def test_every_option_reaches_the_model(here: Scene) -> None:
    await here.ask("hello", **OPTIONS)
    sampling = here.behind.triton.asked[0].sampling
    check_sampling(sampling)
    assert "logprobs" not in sampling


@pytest.mark.parametrize(
    ("shape", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "any"}}, {"type": "object"}),
    ],
)
async def test_response_formats(here: Scene, shape: dict[str, Any], schema: dict[str, Any] | None) -> None:
    await here.ask("hello", response_format=shape)
    told = here.behind.triton.asked[0].sampling.get("json_schema")
    assert (json.loads(told) if told else None) == schema


async def test_an_adapter_is_named_behind_the_model(here: Scene) -> None:
    await here.ask("hello", model="ziya-visual:terse")
    assert here.behind.triton.asked[0].sampling["adapter"] == "terse"
    with pytest.raises(openai.NotFoundError):
        await here.ask("hello", model="other:terse")


async def test_keys_that_do_not_share_pictures_do_not_share_what_was_computed(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, gateway_api_keys="one,two", gateway_salt_by_key=True) as here:
        for key in ("one", "two"):
            client = here.client.with_options(api_key=key)
            await client.chat.completions.create(model="ziya-visual", messages=[{"role": "user", "content": "hello"}])
        assert len({asked.sampling["salt"] for asked in here.behind.triton.asked}) == 2


async def test_what_changes_nothing_is_not_sent(here: Scene) -> None:
    await here.ask("hello", logit_bias={}, logprobs=False, top_logprobs=0, response_format={"type": "text"})
    sampling = here.behind.triton.asked[0].sampling
    assert set(sampling) <= {"deadline", "request_id", "traceparent", "max_tokens"}


async def test_logprobs_come_whole_and_streamed(here: Scene) -> None:
    words = here.behind.triton.words
    answer = await here.ask("hello", logprobs=True, top_logprobs=2)
    assert here.behind.triton.asked[0].sampling["logprobs"] == 2
    content = answer.choices[0].logprobs.content
    assert [each.token for each in content] == words
    for each, word in zip(content, words, strict=True):
        expected = logprob_of(word, 2)
        assert (each.bytes, each.logprob) == (expected["bytes"], expected["logprob"])
        assert [other.logprob for other in each.top_logprobs] == [expected["logprob"]] * 2
    chunks = [chunk async for chunk in await here.ask("hello", logprobs=True, stream=True)]
    assert here.behind.triton.asked[1].sampling["logprobs"] == 0
    told = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices]
    streamed = [each for logprobs in told if logprobs for each in logprobs.content]
    assert [each.token for each in streamed] == words
    assert all(each.top_logprobs == [] for each in streamed)
    unasked = await here.ask("hello")
    assert unasked.choices[0].logprobs is None


async def test_tokens_without_text_yet_still_tell_their_logprobs(here: Scene) -> None:
    """The first half of a character has no text of its own."""
    here.behind.triton.words = ["", "你", ""]
    chunks = [chunk async for chunk in await here.ask("hello", logprobs=True, stream=True)]
    told = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices]
    assert sum(len(logprobs.content) for logprobs in told if logprobs) == 3


async def test_the_models_refusal_of_a_schema_is_a_bad_request(here: Scene) -> None:
    here.behind.triton.behaviour.errors = [InvalidRequest("json_schema: Invalid type: thing")]
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "thing"}}}
    with pytest.raises(openai.BadRequestError, match="Invalid type: thing") as caught:
        await here.ask("hello", response_format=shape)
    assert caught.value.type == "invalid_request_error"


async def test_grpc_carries_the_same(here: Scene) -> None:
    sampling = pb.Sampling(
        presence_penalty=1,
        frequency_penalty=-0.5,
        logit_bias={5: -100, 17: 2.5},
        seed=0,
        logprobs=1,
        json_schema=json.dumps(SCHEMA),
    )
    turn = pb.Turn(role=pb.ROLE_USER, parts=[pb.Part(text="hello")])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{here.gateway.grpc_port}") as channel:
        call = VisualChatStub(channel).Chat(pb.ChatRequest(turns=[turn], sampling=sampling))
        chunks = [chunk async for chunk in call]
        check_sampling(here.behind.triton.asked[0].sampling)
        told = [each for chunk in chunks for each in chunk.logprobs]
        assert [each.token for each in told] == here.behind.triton.words
        assert [each.data.decode() for each in told] == here.behind.triton.words
        assert all(len(each.top) == 1 for each in told)
        bad = pb.ChatRequest(turns=[turn], sampling=pb.Sampling(logit_bias={1: 101}))
        with pytest.raises(grpc.aio.AioRpcError, match="logit_bias"):
            [chunk async for chunk in VisualChatStub(channel).Chat(bad)]


async def test_our_own_client_carries_the_same(here: Scene) -> None:
    sampling = Sampling(
        presence_penalty=1,
        frequency_penalty=-0.5,
        logit_bias={5: -100, 17: 2.5},
        seed=0,
        logprobs=1,
        json_schema=json.dumps(SCHEMA),
    )
    async with ChatClient(f"127.0.0.1:{here.gateway.grpc_port}") as client:
        chunks = [chunk async for chunk in client.ask([Turn("user", "hello")], sampling)]
    check_sampling(here.behind.triton.asked[0].sampling)
    assert "".join(chunk.text for chunk in chunks) == WORDS
    told = [each for chunk in chunks for each in chunk.logprobs]
    assert [(each.token, each.top[0].logprob) for each in told] == [
        (word, logprob_of(word, 1)["logprob"]) for word in here.behind.triton.words
    ]
