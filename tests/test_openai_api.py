"""The gateway's HTTP face as the official OpenAI client sees it, over real HTTP, gRPC and Redis."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from services.gateway.keys import api_keys
from tests.fakes import CONFIG, Gate, expected_sight
from tests.gateways import WORDS, Scene, picture, scene
from ziya import keys
from ziya.errors import InvalidImage, PromptTooLong

RED, BLUE = picture("red"), picture("blue")


@pytest.fixture
async def here(redis_url: str, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(redis_url, tmp_path) as made:
        yield made


def url_of(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def shown(*images: bytes, text: str = "What is this?") -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url_of(image)}} for image in images]
    return [*parts, {"type": "text", "text": text}]


async def test_text_is_answered_whole(here: Scene) -> None:
    answer = await here.ask("你好")
    assert answer.object == "chat.completion"
    assert answer.model == "ziya-visual"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == WORDS
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert here.behind.triton.asked[0].texts == ["<human>:你好\n<bot>:"]


async def test_image_is_seen_and_counted(here: Scene) -> None:
    answer = await here.ask(shown(RED))
    assert answer.choices[0].message.content == f"[{expected_sight(RED)}]{WORDS}"
    details = answer.usage.prompt_tokens_details
    assert (details.cached_tokens, details.image_tokens) == (0, CONFIG.queries)
    assert answer.ziya["images"] == [{"image_id": keys.image_id(RED), "cached": False}]
    assert {"admission", "vision", "visual_wait", "prefill", "total"} <= set(answer.ziya["stage_seconds"])
    assert here.behind.triton.asked[0].texts == ["", "<human>:What is this?\n<bot>:"]


async def test_stream_brings_the_same_words_and_usage_last(here: Scene) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = [chunk async for chunk in await here.ask(shown(RED), **options)]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content for chunk in chunks[1:] if chunk.choices]
    assert "".join(text or "" for text in texts) == f"[{expected_sight(RED)}]{WORDS}"
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 7
    assert chunks[-1].usage.prompt_tokens_details.image_tokens == CONFIG.queries
    assert chunks[-1].ziya["images"][0]["image_id"] == keys.image_id(RED)
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_stream_without_usage_still_ends_with_our_report(here: Scene) -> None:
    chunks = [chunk async for chunk in await here.ask("hello", stream=True)]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is None
    assert chunks[-1].ziya["stage_seconds"]["total"] > 0


async def test_stream_is_server_sent_events(here: Scene) -> None:
    body = {"model": "ziya-visual", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    answer = await here.http.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.text.endswith("\n\ndata: [DONE]\n\n")
    assert all(line.startswith("data: ") for line in answer.text.split("\n\n") if line)


async def test_several_images_and_turns_keep_their_order(here: Scene) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": shown(RED, BLUE, text="Two?")},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": shown(RED, text="And this?")},
    ]
    answer = await here.client.chat.completions.create(model="ziya-visual", messages=messages)
    sights = [expected_sight(image) for image in (RED, BLUE, RED)]
    assert answer.choices[0].message.content == "".join(f"[{sight}]" for sight in sights) + WORDS
    assert here.behind.triton.asked[0].texts == [
        "",
        "",
        "<human>:Be brief.\nTwo?\n<bot>:Two.</s>",
        "<human>:And this?\n<bot>:",
    ]
    assert len(here.behind.vision.requests) == 2, "equal images of one request are encoded once"
    assert answer.usage.prompt_tokens_details.image_tokens == 3 * CONFIG.queries


async def test_neighbouring_messages_of_one_role_are_joined(here: Scene) -> None:
    messages = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    await here.client.chat.completions.create(model="ziya-visual", messages=messages)
    assert here.behind.triton.asked[0].texts == ["<human>:one\ntwo\n<bot>:"]


async def test_second_question_about_an_image_finds_its_tokens(here: Scene) -> None:
    await here.ask(shown(RED))
    answer = await here.ask(shown(RED, text="And again?"))
    assert answer.usage.prompt_tokens_details.cached_tokens == CONFIG.queries
    assert answer.ziya["images"][0]["cached"] is True
    assert len(here.behind.vision.requests) == 1


@pytest.mark.parametrize("form", ["image_id", "image_url"])
async def test_image_id_stands_for_the_image(here: Scene, form: str) -> None:
    image_id = (await here.ask(shown(RED))).ziya["images"][0]["image_id"]
    url = {"type": "image_url", "image_url": {"url": f"image-id:{image_id}"}}
    part = {"type": "image_id", "image_id": image_id} if form == "image_id" else url
    answer = await here.ask([part, {"type": "text", "text": "Again?"}])
    assert answer.choices[0].message.content.startswith(f"[{expected_sight(RED)}]")
    assert len(here.behind.vision.requests) == 1


async def test_image_id_whose_tokens_are_gone_is_made_from_features(here: Scene, redis_url: str) -> None:
    image_id = keys.image_id(RED)
    here.behind.vision.remembers.add(image_id)
    answer = await here.ask([{"type": "image_id", "image_id": image_id}])
    assert answer.choices[0].message.content.startswith(f"[{expected_sight(RED)}]")
    assert here.behind.vision.requests[0].image == b""


async def test_unknown_image_id_asks_for_the_image(here: Scene) -> None:
    with pytest.raises(openai.NotFoundError, match="send the image again") as caught:
        await here.ask([{"type": "image_id", "image_id": "0" * 64}])
    assert caught.value.code == "image_not_found"


async def test_sampling_reaches_the_model(here: Scene) -> None:
    await here.ask(
        "hello",
        temperature=0,
        top_p=0.5,
        max_completion_tokens=9,
        seed=-1,
        stop="。",
        extra_body={"top_k": 3, "repetition_penalty": 1.5, "ignore_eos": True},
    )
    sampling = here.behind.triton.asked[0].sampling
    expected = {"temperature": 0, "top_p": 0.5, "max_tokens": 9, "seed": 2**64 - 1, "stop": ["。"], "top_k": 3}
    assert expected | {"repetition_penalty": 1.5, "ignore_eos": True} == {
        name: value for name, value in sampling.items() if name not in {"deadline", "request_id"}
    }


async def test_absent_sampling_is_left_to_the_checkpoint(here: Scene) -> None:
    await here.ask("hello")
    assert set(here.behind.triton.asked[0].sampling) == {"deadline", "request_id"}


async def test_length_is_the_reason_when_the_answer_is_cut(here: Scene) -> None:
    answer = await here.ask("hello", max_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 2


async def test_neutral_values_of_unsupported_fields_are_accepted(here: Scene) -> None:
    neutral = {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "user": "me", "store": False}
    answer = await here.ask("hello", **neutral, tools=[], response_format={"type": "text"})
    assert answer.choices[0].message.content == WORDS


async def test_error_of_the_model_keeps_its_class(here: Scene) -> None:
    here.behind.triton.behaviour.errors = [PromptTooLong("the prompt takes 600 positions; the model has 512")]
    with pytest.raises(openai.BadRequestError, match="600 positions") as caught:
        await here.ask("hello", stream=True)
    assert caught.value.code == "context_length_exceeded"


async def test_error_of_the_encoder_ends_the_request(here: Scene) -> None:
    gate = Gate()
    here.behind.vision.behaviour.gate = gate
    here.behind.vision.behaviour.errors = [InvalidImage("the image is truncated")]
    question = asyncio.create_task(here.ask(shown(RED)))
    await here.behind.triton.behaviour.entered.wait()
    gate.is_open.set()
    with pytest.raises(openai.BadRequestError, match="truncated"):
        await question
    await here.behind.triton.behaviour.cancelled.wait()


async def test_models_are_listed(here: Scene) -> None:
    assert [model.id async for model in here.client.models.list()] == ["ziya-visual"]
    assert (await here.client.models.retrieve("ziya-visual")).owned_by == "ziya-visual"
    with pytest.raises(openai.NotFoundError) as caught:
        await here.client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        await here.ask("hello", model="gpt-4")


async def test_api_keys_open_what_is_theirs(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, gateway_api_keys="one, two") as here:
        with pytest.raises(openai.AuthenticationError) as caught:
            await here.ask("hello")
        assert caught.value.code == "invalid_api_key"
        client = here.client.with_options(api_key="two")
        assert [model.id async for model in client.models.list()] == ["ziya-visual"]
        answer = await client.chat.completions.create(
            model="ziya-visual", messages=[{"role": "user", "content": "hello"}]
        )
        assert answer.choices[0].message.content == WORDS
        assert (await here.http.get("/v1/models")).status_code == 401
        assert (await here.http.get("/healthz")).status_code == 200


async def test_keys_in_a_file_may_be_exchanged(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "LOOK_SECONDS", 0.0)
    file = tmp_path / "keys"
    file.write_text("one,two\n", "utf-8")
    async with scene(redis_url, tmp_path, gateway_api_keys_file=file) as here:

        async def status(key: str) -> int:
            return (await here.http.get("/v1/models", headers={"Authorization": f"Bearer {key}"})).status_code

        assert [await status(key) for key in ("one", "two", "three")] == [200, 200, 401]
        file.write_text("two\nthree\n", "utf-8")
        assert [await status(key) for key in ("one", "two", "three")] == [401, 200, 200]
        # Neither an empty file nor none opens the gateway, or shuts it.
        for spoil in (lambda: file.write_text(" ,\n", "utf-8"), file.unlink):
            spoil()
            assert [await status(key) for key in ("one", "two", "three", "four")] == [401, 200, 200, 401]


@pytest.mark.parametrize("content", [None, " ,\n"])
def test_a_key_file_without_keys_stops_the_gateway(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content, "utf-8")
    with pytest.raises(api_keys.KeyFileError, match=r"keys (cannot be read|holds no key)"):
        api_keys.KeyFile(file)


async def test_keys_do_not_share_images_when_salted(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, gateway_api_keys="one,two", gateway_salt_by_key=True) as here:
        for key in ("one", "two"):
            client = here.client.with_options(api_key=key)
            messages = [{"role": "user", "content": shown(RED)}]
            answer = await client.chat.completions.create(model="ziya-visual", messages=messages)
            assert answer.ziya["images"][0]["cached"] is False
        assert len({request.salt for request in here.behind.vision.requests}) == 2


async def test_request_id_goes_through_and_comes_back(here: Scene) -> None:
    answer = await here.ask("hello", extra_headers={"X-Request-Id": "my-own-7"})
    assert answer.ziya["request_id"] == "my-own-7"
    assert answer._request_id == "my-own-7"
    assert here.behind.triton.asked[0].sampling["request_id"] == "my-own-7"
    unfit = await here.http.get("/healthz", headers={"X-Request-Id": "no spaces"})
    assert len(unfit.headers["x-request-id"]) == 32


async def test_every_path_answers_in_one_shape(here: Scene) -> None:
    assert (await here.http.get("/")).status_code == 200
    missing = await here.http.get("/v2/nothing")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
    wrong = await here.http.get("/v1/chat/completions")
    assert wrong.status_code == 405
    assert "error" in wrong.json()


async def test_synchronous_client_works_too(here: Scene) -> None:
    def ask() -> str:
        with openai.OpenAI(base_url=f"{here.url}/v1", api_key="none") as client:
            messages: Any = [{"role": "user", "content": shown(BLUE)}]
            stream = client.chat.completions.create(model="ziya-visual", messages=messages, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert await asyncio.to_thread(ask) == f"[{expected_sight(BLUE)}]{WORDS}"
