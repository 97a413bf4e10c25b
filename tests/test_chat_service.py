"""VisualChat over gRPC: the same answers and errors as over HTTP, reflection, health."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos import chat_pb2 as pb
from protos.chat_pb2_grpc import VisualChatStub
from tests.fakes import CONFIG, Gate, expected_sight
from tests.gateways import (
    WORDS,
    Scene,
    picture,
    scene,
)
from ziya import keys

RED = picture("red")
SEEN = f"[{expected_sight(RED)}]{WORDS}"


@pytest.fixture
async def here(redis_url: str, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(redis_url, tmp_path) as made:
        yield made


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
        health = health_pb2_grpc.HealthStub(channel)
        while (await health.Check(check)).status != health_pb2.HealthCheckResponse.SERVING:
            await asyncio.sleep(0.02)
