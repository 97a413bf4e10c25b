"""The gateway when things go wrong: cancellation, overload, Redis, Triton and encoders that die; and its gRPC face."""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos import chat_pb2 as pb
from protos.chat_pb2_grpc import VisualChatStub
from tests.fakes import CONFIG, Gate, backend, expected_sight, qformer_service, vision_service
from tests.gateways import Scene, picture, scene
from tests.redis_server import RedisServer
from ziya import keys
from ziya.content import ContentKeys
from ziya.errors import Internal, Overloaded, VisualTokensMissing

RED = picture("red")
WORDS = "你好，this is a fake answer。"
SEEN = f"[{expected_sight(RED)}]{WORDS}"


@pytest.fixture
async def here(redis_url: str, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(redis_url, tmp_path) as made:
        yield made


def shown(image: bytes, text: str = "What is this?") -> list[dict[str, Any]]:
    url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]


async def content_of(question: Awaitable[Any]) -> str:
    return str((await question).choices[0].message.content)


async def words_of(question: Awaitable[Any]) -> str:
    answer = await question
    return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Asks until it is so; the test's own timeout ends a wait in vain."""
    while not await condition():
        await asyncio.sleep(0.02)


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
    await until(lambda: _is(here, "ziya_gateway_in_flight", 0))


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


async def _is(here: Scene, name: str, value: float) -> bool:
    return await here.metric(name) == value


# Admission, deadlines, drain


async def test_more_than_the_limit_is_told_to_come_back(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, gateway_max_in_flight=1) as here:
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
    await until(lambda: _positive(here, "ziya_gateway_retries_total"))
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
    await until(lambda: _positive(here, "ziya_gateway_retries_total"))
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


async def _positive(here: Scene, name: str) -> bool:
    return await here.metric(name) > 0


# The bus


async def test_redis_down_goes_inline_and_comes_back(redis_server: RedisServer, tmp_path: Path) -> None:
    async with scene(redis_server.url, tmp_path) as here:
        redis_server.kill()
        assert await content_of(here.ask(shown(RED))) == SEEN
        assert here.behind.triton.asked[-1].inline
        assert await here.metric("ziya_gateway_inline_total") == 1
        assert await here.metric("ziya_gateway_bus_up") == 0
        redis_server.start()
        await until(lambda: _is(here, "ziya_gateway_bus_up", 1))
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
        await until(lambda: _positive(here, "ziya_gateway_retries_total"))
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


# Health


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
        redis_server.kill()
        answer = await here.http.get("/readyz")
        assert answer.status_code == 200
        assert "Redis" in answer.json()["stages"]["redis"]


# gRPC


def turn(*parts: str | pb.Image) -> pb.Turn:
    filled = [pb.Part(text=part) if isinstance(part, str) else pb.Part(image=part) for part in parts]
    return pb.Turn(role=pb.ROLE_USER, parts=filled)


async def test_grpc_answers_as_http_does(here: Scene) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{here.gateway.grpc_port}") as channel:
        request = pb.ChatRequest(turns=[turn(pb.Image(data=RED), "What?")], sampling=pb.Sampling(max_tokens=50))
        chunks = [chunk async for chunk in VisualChatStub(channel).Chat(request)]
        assert "".join(chunk.text for chunk in chunks) == SEEN
        last = chunks[-1]
        assert last.finish_reason == "stop"
        assert (last.usage.image_tokens, last.usage.cached_tokens) == (CONFIG.queries, 0)
        assert last.images[0].image_id == keys.image_id(RED)
        assert last.stage_seconds["total"] > 0
        again = pb.ChatRequest(turns=[turn("And?", pb.Image(image_id=last.images[0].image_id))])
        chunks = [chunk async for chunk in VisualChatStub(channel).Chat(again)]
        assert chunks[-1].usage.cached_tokens == CONFIG.queries


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (pb.ChatRequest(), grpc.StatusCode.INVALID_ARGUMENT, "InvalidRequest: messages"),
        (pb.ChatRequest(turns=[pb.Turn()]), grpc.StatusCode.INVALID_ARGUMENT, "turns.0.role"),
        (pb.ChatRequest(turns=[turn(pb.Image(data=b"no"))]), grpc.StatusCode.INVALID_ARGUMENT, "turns.0.parts.0.image"),
        (pb.ChatRequest(turns=[turn("x")], model="gpt-4"), grpc.StatusCode.NOT_FOUND, "NotFound: the model"),
        (
            pb.ChatRequest(turns=[turn("x")], sampling=pb.Sampling(top_p=2.0)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "top_p",
        ),
    ],
)
async def test_grpc_errors_have_a_status_and_a_name(
    here: Scene, request_: pb.ChatRequest, code: grpc.StatusCode, words: str
) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{here.gateway.grpc_port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [chunk async for chunk in VisualChatStub(channel).Chat(request_)]
        assert caught.value.code() is code
        assert words in (caught.value.details() or "")


async def test_grpc_cancellation_and_keys(redis_url: str, tmp_path: Path) -> None:
    async with (
        scene(redis_url, tmp_path, gateway_api_keys="secret") as here,
        grpc.aio.insecure_channel(f"127.0.0.1:{here.gateway.grpc_port}") as channel,
    ):
        stub, request = VisualChatStub(channel), pb.ChatRequest(turns=[turn("hello")])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Chat(request).read()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        here.behind.triton.pause = Gate()
        call = stub.Chat(request, metadata=(("authorization", "Bearer secret"),))
        assert (await call.read()).text == "你好"
        call.cancel()
        await here.behind.triton.behaviour.cancelled.wait()


async def test_grpc_reflection_and_health(here: Scene) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{here.gateway.grpc_port}") as channel:
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
        answer = await call.read()
        names = {service.name for service in answer.list_services_response.service}
        assert {"ziya.visual.v1.VisualChat", "grpc.health.v1.Health"} <= names
        check = health_pb2.HealthCheckRequest(service="ziya.visual.v1.VisualChat")
        assert (await health_pb2_grpc.HealthStub(channel).Check(check)).status == health_pb2.HealthCheckResponse.SERVING


# The process


async def test_process_drains_before_it_stops(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(CONFIG.to_json(), "utf-8")
    async with backend(redis_url, ContentKeys(CONFIG)) as behind:
        environment = os.environ | {
            "ZIYA_CHECKPOINT": str(tmp_path),
            "ZIYA_REDIS_URL": redis_url,
            "ZIYA_GATEWAY_HTTP_PORT": "0",
            "ZIYA_GATEWAY_GRPC_PORT": "0",
            "ZIYA_GATEWAY_TRITON": f"127.0.0.1:{behind.triton_server.port}",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.gateway.app", env=environment, stdout=PIPE, stderr=PIPE
        )
        assert process.stdout is not None
        told = json.loads(await process.stdout.readline())
        assert (told["event"], told["service"]) == ("listening", "gateway")
        pause = behind.triton.pause = Gate()
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{told['http']}/v1", api_key="none", max_retries=0
        ) as client:
            ask = functools.partial(
                client.chat.completions.create, model="ziya-visual", messages=[{"role": "user", "content": "hello"}]
            )
            question = asyncio.create_task(words_of(ask(stream=True)))
            await pause.reached.wait()
            process.send_signal(signal.SIGTERM)
            behind.triton.pause = None
            await until(lambda: refused(ask()))
            pause.is_open.set()
            assert await question == WORDS
        _, log = await process.communicate()
        assert process.returncode == 0, log.decode()
        ended = [line for line in map(json.loads, log.splitlines()) if line["msg"] == "request ended"]
        assert {"ok", "Unavailable"} <= {line["outcome"] for line in ended}
        assert all(line["request_id"] for line in ended)


async def refused(question: Awaitable[Any]) -> bool:
    try:
        await question
    except openai.APIError:
        return True
    return False


async def test_process_names_a_wrong_setting(tmp_path: Path) -> None:
    environment = os.environ | {"ZIYA_CHECKPOINT": str(tmp_path), "ZIYA_GATEWAY_HTTPPORT": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.gateway.app", env=environment, stdout=PIPE, stderr=PIPE
    )
    _, log = await process.communicate()
    assert process.returncode == 2
    assert b"ZIYA_GATEWAY_HTTPPORT" in log
