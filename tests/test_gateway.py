"""The gateway under cancellation, overload and deadlines, and when a stage behind it dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from tests.fake_triton import Asked
from tests.fakes import Gate, expected_sight, vision_service
from tests.gateways import (
    WORDS,
    Scene,
    content_of,
    metric_counts,
    metric_is,
    picture,
    scene,
    shown,
    until,
    words_of,
)
from ziya.bus import READY
from ziya.errors import Internal, Overloaded
from ziya.keys import left_key
from ziya.redis_link import entries_of

RED = picture("red")
SEEN = f"[{expected_sight(RED)}]{WORDS}"


@pytest.fixture
async def here(redis_url: str, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(redis_url, tmp_path) as made:
        yield made


# Cancellation


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_before_the_first_text_stops_every_stage(here: Scene, stream: bool) -> None:
    here.behind.vision.behaviour.gate = Gate()
    question = asyncio.create_task(here.ask(shown(RED), stream=stream))
    await here.behind.vision.behaviour.gate.reached.wait()
    await here.behind.triton.behaviour.entered.wait()
    question.cancel()
    await here.behind.vision.behaviour.cancelled.wait()
    await here.behind.triton.behaviour.cancelled.wait()


async def test_leaving_in_the_middle_stops_the_model(here: Scene) -> None:
    here.behind.triton.pause = Gate()
    stream = await here.ask("hello", stream=True)
    await anext(aiter(stream))
    await stream.close()
    await here.behind.triton.behaviour.cancelled.wait()
    await until(lambda: metric_is(here, "ziya_gateway_in_flight", 0))


async def test_the_model_hears_of_who_left_and_not_of_who_was_answered(here: Scene) -> None:
    assert await content_of(here.ask("hello")) == WORDS
    here.behind.triton.pause = Gate()
    stream = await here.ask("hello", stream=True)
    await anext(aiter(stream))
    await stream.close()
    answered, left = (left_key(asked.sampling["request_id"], asked.sampling["deadline"]) for asked in _asked(here))
    await until(lambda: _announced(here, left))
    assert not await _announced(here, answered)


def _asked(here: Scene) -> list[Asked]:
    return here.behind.triton.asked


async def _announced(here: Scene, key: str) -> bool:
    entries = entries_of(await here.behind.bus.link.call("XRANGE", READY, "-", "+"))
    return key.encode() in [fields[b"key"] for _, fields in entries]


async def test_one_of_two_equal_images_may_leave(here: Scene) -> None:
    gate = here.behind.vision.behaviour.gate = Gate()
    first = asyncio.create_task(here.ask(shown(RED)))
    await gate.reached.wait()
    second = asyncio.create_task(here.ask(shown(RED)))
    await until(lambda: _two_opened(here))
    first.cancel()
    gate.is_open.set()
    assert await content_of(second) == SEEN
    assert len(here.behind.vision.requests) == 1


async def _two_opened(here: Scene) -> bool:
    return here.behind.triton.opened == 2


# Admission, deadlines, drain


async def test_more_than_the_limit_is_told_to_come_back(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, gateway_max_in_flight=1, gateway_max_waiting=0) as here:
        gate = here.behind.triton.behaviour.gate = Gate()
        first = asyncio.create_task(here.ask("hello"))
        await gate.reached.wait()
        with pytest.raises(openai.RateLimitError) as caught:
            await here.ask("hello")
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.code == "overloaded"
        gate.is_open.set()
        assert await content_of(first) == WORDS
        assert await content_of(here.ask("hello")) == WORDS


async def test_two_hundred_at_once_are_answered_or_refused(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, gateway_max_in_flight=64) as here:
        questions = [here.ask(shown(picture("red", 16 + n % 5))) for n in range(200)]
        answers = await asyncio.gather(*questions, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
        answered = [answer for answer in answers if not isinstance(answer, BaseException)]
        assert len(refused) + len(answered) == 200
        assert len(answered) >= 64
        assert all(answer.choices[0].message.content.endswith(WORDS) for answer in answered)


async def test_busy_encoder_is_passed_on(here: Scene) -> None:
    here.behind.vision.behaviour.errors = [Overloaded("16 requests are waiting already", 3.0)]
    with pytest.raises(openai.RateLimitError) as caught:
        await here.ask(shown(RED))
    assert caught.value.response.headers["retry-after"] == "3"


async def test_deadline_ends_a_request_before_its_first_text(here: Scene) -> None:
    here.behind.triton.behaviour.gate = Gate()
    with pytest.raises(openai.APIStatusError) as caught:
        await here.ask("hello", extra_headers={"X-Request-Timeout": "0.3"})
    assert caught.value.status_code == 504
    assert caught.value.code == "deadline_exceeded"
    await here.behind.triton.behaviour.cancelled.wait()


async def test_deadline_ends_a_stream_with_an_error_event(here: Scene) -> None:
    here.behind.triton.pause = Gate()
    stream = await here.ask("hello", stream=True, extra_headers={"X-Request-Timeout": "0.5"})
    with pytest.raises(openai.APIError, match="time was over"):
        async for _ in stream:
            pass


async def test_silence_is_filled_with_heartbeats(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, gateway_heartbeat_seconds=0.05) as here:
        gate = here.behind.triton.behaviour.gate = Gate()
        body = {"model": "ziya-visual", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        lines = []
        async with here.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                lines.append(line)
                if line.startswith(":"):
                    gate.is_open.set()
        assert lines[0].startswith(":")
        assert "data: [DONE]" in lines


# Failures before and after the first text


async def test_dead_triton_is_waited_for(here: Scene) -> None:
    await here.behind.triton_server.kill()
    question = asyncio.create_task(here.ask(shown(RED)))
    await until(lambda: metric_counts(here, "ziya_gateway_retries_total"))
    await here.behind.triton_server.start()
    assert await content_of(question) == SEEN


async def test_triton_that_dies_before_the_first_text_is_asked_again(here: Scene) -> None:
    gate = here.behind.triton.behaviour.gate = Gate()
    question = asyncio.create_task(here.ask(shown(RED)))
    await gate.reached.wait()
    await here.behind.triton_server.kill()
    gate.is_open.set()
    await here.behind.triton_server.start()
    assert await content_of(question) == SEEN


async def test_triton_that_dies_after_the_first_text_is_an_error_event(here: Scene) -> None:
    here.behind.triton.pause = Gate()
    stream = await here.ask("hello", stream=True)
    chunks = aiter(stream)
    assert (await anext(chunks)).choices[0].delta.content == ""
    assert (await anext(chunks)).choices[0].delta.content == "你好"
    await here.behind.triton_server.kill()
    with pytest.raises(openai.APIError, match="language model"):
        await anext(chunks)


@pytest.mark.parametrize("stream", [False, True])
async def test_error_of_the_model_in_the_middle_is_told(here: Scene, stream: bool) -> None:
    here.behind.triton.late_error = Internal("the engine failed")
    with pytest.raises(openai.APIError, match="the engine failed"):
        await words_of(here.ask("hello", stream=stream))


async def test_dead_vision_is_waited_for(here: Scene) -> None:
    await here.behind.vision_server.stop()
    question = asyncio.create_task(here.ask(shown(RED)))
    await until(lambda: metric_counts(here, "ziya_gateway_retries_total"))
    again = vision_service(here.behind.vision, here.behind.vision_port)
    await again.start()
    try:
        assert await content_of(question) == SEEN
    finally:
        await again.stop()


async def test_stage_that_stays_away_is_named(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, gateway_retry_seconds=0.2) as here:
        await here.behind.triton_server.kill()
        with pytest.raises(openai.InternalServerError, match="language model") as caught:
            await here.ask("hello")
        assert caught.value.status_code == 503
        assert caught.value.code == "stage_unavailable"
