"""The typed client against a real gRPC server that stands where the gateway does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from protos import chat_pb2, chat_pb2_grpc
from ziya import rpc_server
from ziya.client import ChatClient, Chunk, ImageId, Sampling, Usage
from ziya.errors import InvalidRequest, Overloaded, Unavailable
from ziya.prompt import Turn
from ziya.telemetry import Metrics


class Scripted(chat_pb2_grpc.VisualChatServicer):
    """Streams what it is given and remembers what it was asked."""

    def __init__(self, *script: chat_pb2.ChatChunk | Exception) -> None:
        self.script = script
        self.asked: list[chat_pb2.ChatRequest] = []

    async def Chat(self, request: chat_pb2.ChatRequest, context: Any) -> AsyncIterator[chat_pb2.ChatChunk]:
        self.asked.append(request)
        for step in self.script:
            if isinstance(step, Exception):
                raise step
            yield step


@asynccontextmanager
async def gateway(service: Scripted) -> AsyncIterator[ChatClient]:
    def register(server: grpc.aio.Server) -> None:
        chat_pb2_grpc.add_VisualChatServicer_to_server(service, server)

    options, names = rpc_server.ServerOptions(), ["ziya.visual.v1.VisualChat"]
    server = rpc_server.GrpcServer("gateway", register, names, options=options, metrics=Metrics("gateway"))
    port = await server.start()
    try:
        async with ChatClient(f"127.0.0.1:{port}") as client:
            yield client
    finally:
        await server.stop()


async def answer(client: ChatClient, *turns: Turn[Any], sampling: Sampling | None = None) -> list[Chunk]:
    return [chunk async for chunk in client.ask(turns or (Turn("user", "hi"),), sampling)]


async def test_a_streamed_answer_with_all_that_its_last_chunk_tells() -> None:
    last = chat_pb2.ChatChunk(
        text="猫",
        finish_reason="stop",
        usage=chat_pb2.Usage(prompt_tokens=9, image_tokens=4, cached_tokens=4, completion_tokens=2),
        stage_seconds={"vision": 0.5},
        images=[chat_pb2.ImageInfo(image_id="ab", cached=True)],
        request_id="r",
    )
    async with gateway(Scripted(chat_pb2.ChatChunk(text="一只", request_id="r"), last)) as client:
        first, second = await answer(client)
    assert first == Chunk("一只", "r")
    assert second == Chunk("猫", "r", "stop", Usage(9, 4, 4, 2), {"vision": 0.5}, ("ab",))


async def test_turns_pictures_and_sampling_arrive() -> None:
    service = Scripted()
    turns = [Turn("user", "What?", (b"png", ImageId("ab"))), Turn("assistant", "A cat."), Turn("user", "Colour?")]
    async with gateway(service) as client:
        await answer(client, *turns, sampling=Sampling(temperature=0.0, max_tokens=5, stop=("\n",)))
    (request,) = service.asked
    assert [turn.role for turn in request.turns] == [chat_pb2.ROLE_USER, chat_pb2.ROLE_ASSISTANT, chat_pb2.ROLE_USER]
    first = request.turns[0].parts
    assert (first[0].image.data, first[1].image.image_id, first[2].text) == (b"png", "ab", "What?")
    assert request.sampling.temperature == 0.0
    assert request.sampling.HasField("temperature")
    assert not request.sampling.HasField("top_p")
    assert (request.sampling.max_tokens, list(request.sampling.stop)) == (5, ["\n"])


async def test_an_unknown_role_is_refused_before_anything_is_sent() -> None:
    service = Scripted()
    async with gateway(service) as client:
        with pytest.raises(InvalidRequest, match="'robot'"):
            await answer(client, Turn("robot", "hi"))
    assert service.asked == []


@pytest.mark.parametrize("error", [Overloaded("busy"), Unavailable("vision is stopping"), InvalidRequest("no turns")])
async def test_the_gateways_errors_keep_their_words(error: Exception) -> None:
    async with gateway(Scripted(error)) as client:
        with pytest.raises(type(error), match=str(error)):
            await answer(client)


async def test_no_stack() -> None:
    async with ChatClient("127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match=r"no stack is running at 127\.0\.0\.1:1: start one with `ziya up`"):
            await answer(client)
