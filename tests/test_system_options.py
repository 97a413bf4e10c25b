"""Every option of sampling and shape, by OpenAI's client, through the whole stack of real processes."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from tests.stack import Stack, running

pytestmark = [pytest.mark.xdist_group("stack"), pytest.mark.timeout(240)]

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"是": {"enum": ["猫", "狗"]}, "legs": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["是", "legs"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("home"), tiny_checkpoint) as stack:
        yield stack


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def ask(client: openai.AsyncOpenAI, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": "这是什么？"}]
    return await client.chat.completions.create(model="ziya-visual", messages=messages, **options)


def shaped(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "animal", "strict": True, "schema": schema}}


async def test_a_schema_is_followed(client: openai.AsyncOpenAI) -> None:
    for seed in range(3):
        answer = await ask(client, response_format=shaped(SCHEMA), temperature=1, seed=seed, max_tokens=200)
        assert answer.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)
    cut = await ask(client, response_format=shaped(SCHEMA), max_tokens=3)
    assert cut.choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError, match=r"json_schema: .*thing") as caught:
        await ask(client, response_format=shaped({"type": "thing"}))
    assert caught.value.type == "invalid_request_error"


async def test_bias_penalties_and_logprobs(client: openai.AsyncOpenAI) -> None:
    plain = await ask(
        client, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3, extra_body={"ignore_eos": True}
    )
    told = plain.choices[0].logprobs.content
    assert len(told) == 8
    for each in told:
        assert each.top_logprobs[0].token == each.token
        assert each.top_logprobs[0].logprob == each.logprob < 0
        assert sum(math.exp(other.logprob) for other in each.top_logprobs) <= 1 + 1e-5
    first = told[0].id
    biased = await ask(client, max_tokens=8, temperature=0, logprobs=True, logit_bias={str(first): -100})
    assert biased.choices[0].logprobs.content[0].id != first
    # with OpenAI's largest penalties over a model that repeats itself, no token need come twice as often
    options = {"max_tokens": 60, "temperature": 0, "logprobs": True, "extra_body": {"ignore_eos": True}}
    repeating = [each.id for each in (await ask(client, **options)).choices[0].logprobs.content]
    options |= {"presence_penalty": 2, "frequency_penalty": 2}
    varied = [each.id for each in (await ask(client, **options)).choices[0].logprobs.content]
    assert len(set(varied)) > len(set(repeating))
    with pytest.raises(openai.BadRequestError, match="logit_bias: the model"):
        await ask(client, logit_bias={"999999": 1})


async def test_a_seed_repeats_and_streams_tell_all_tokens(client: openai.AsyncOpenAI) -> None:
    options = {"temperature": 1.5, "seed": 4, "max_tokens": 24, "logprobs": True, "extra_body": {"ignore_eos": True}}
    whole = await ask(client, **options)
    chunks = [chunk async for chunk in await ask(client, stream=True, **options)]
    told = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices]
    streamed = [each.id for logprobs in told if logprobs for each in logprobs.content]
    assert streamed == [each.id for each in whole.choices[0].logprobs.content]
    assert len(streamed) == 24
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
