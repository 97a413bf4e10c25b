"""Asks our gateway's VisualChat over gRPC. Nothing is tried again: a load must see each failure that users would.

What they would not see, neither does it: a call begun while the server was closing the connection for its age, of which
the server says that it has not looked at it (GOAWAY), gRPC sends again by itself.
"""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from cli.load.request import Answer, Clock, Failed, Options, Picture, Request, Usage
from protos import chat_pb2, chat_pb2_grpc
from ziya.client import ROLES
from ziya.prompt import Turn

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 32 << 20),
    ("grpc.max_send_message_length", 32 << 20),
]


class GrpcCaller:
    """One channel to `target`, host:port; `secure` is TLS with the machine's certificates."""

    def __init__(
        self,
        target: str,
        model: str,
        options: Options,
        clock: Clock,
        api_key: str | None = None,
        *,
        secure: bool = False,
    ) -> None:
        if secure:
            self._channel = grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(), options=_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        stub: Any = chat_pb2_grpc.VisualChatStub
        self._chat = stub(self._channel).Chat
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._model, self._options, self._clock = model, options, clock

    async def ask(self, request: Request, answer: Answer) -> None:
        options = self._options
        sampling = chat_pb2.Sampling(
            max_tokens=request.max_tokens, temperature=options.temperature, ignore_eos=options.ignore_eos
        )
        turns = [_turn(turn) for turn in request.turns]
        replies = self._chat(
            chat_pb2.ChatRequest(turns=turns, sampling=sampling, model=self._model), metadata=self._metadata
        )
        try:
            async for chunk in replies:
                self._take(chunk, answer)
        except grpc.aio.AioRpcError as error:
            where = " in stream" if answer.pieces else ""
            raise Failed(f"grpc {error.code().name}{where}", error.details() or "without a word") from error
        finally:
            replies.cancel()
        if not answer.finish_reason:
            raise Failed("broken", "the stream ended without a finish reason")
        if not answer.pieces:
            raise Failed("empty", "the answer ended without any text")

    async def close(self) -> None:
        await self._channel.close(None)

    def _take(self, chunk: chat_pb2.ChatChunk, answer: Answer) -> None:
        now = self._clock()
        if chunk.text:
            answer.pieces.append(now)
            answer.text += chunk.text
        if chunk.finish_reason:
            answer.finish_reason, answer.ended = chunk.finish_reason, now
            usage = chunk.usage
            answer.usage = Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.image_tokens)
            answer.stages = dict(chunk.stage_seconds)


def _turn(turn: Turn[Picture]) -> chat_pb2.Turn:
    parts = [chat_pb2.Part(image=chat_pb2.Image(data=image.data)) for image in turn.images]
    return chat_pb2.Turn(role=ROLES[turn.role], parts=[*parts, chat_pb2.Part(text=turn.text)])
