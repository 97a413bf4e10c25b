"""Clients that cost little, so that what is measured is the stack: one over HTTP, one over gRPC.

Both ask one question about one image and report when the first piece of text came. The HTTP one writes the
request by hand on a kept-alive connection: a comfortable client library takes milliseconds of its own.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from protos import chat_pb2, chat_pb2_grpc
from ziya import rpc


@dataclass
class Timing:
    """One answer. Times in seconds from the moment the request was written; `arrivals` one per piece of text."""

    first_token: float = 0.0
    total: float = 0.0
    tokens: int = 0
    text: str = ""
    stage_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """`image` is an encoded picture, or empty for none. Greedy; with `ignore_eos` exactly `max_tokens` come."""

    question: str
    image: bytes = b""
    max_tokens: int = 16
    ignore_eos: bool = False


class Caller(Protocol):
    """Asks one question at a time."""

    async def ask(self, ask: Ask) -> Timing: ...

    async def close(self) -> None: ...


class HttpCaller:
    """One connection to the gateway's OpenAI endpoint."""

    def __init__(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._address, self._reader, self._writer = address, reader, writer

    @classmethod
    async def connect(cls, address: str) -> Self:
        host, _, port = address.rpartition(":")
        return cls(address, *await asyncio.open_connection(host, int(port), limit=1 << 20))

    async def ask(self, ask: Ask) -> Timing:
        body = json.dumps(_completion(ask)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._address}\r\nContent-Type: application/json\r\n"
        timing, started = Timing(), time.perf_counter()
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await self._writer.drain()
        status = (await self._reader.readline()).split()[1]
        while (await self._reader.readline()).strip():
            pass
        if status != b"200":
            raise RuntimeError(f"the gateway answered {status.decode()}: {(await self._reader.read(2000)).decode()}")
        async for event in self._events():
            self._take(event, timing, started)
        timing.total = time.perf_counter() - started
        return timing

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def _events(self) -> Any:
        """The JSON events of one chunked reply, which is read to its end."""
        buffer = b""
        while size := int(await self._reader.readline(), 16):
            buffer += (await self._reader.readexactly(size + 2))[:-2]
            *events, buffer = buffer.split(b"\n\n")
            for event in events:
                if event.startswith(b"data: {"):
                    yield json.loads(event[6:])
        await self._reader.readline()

    @staticmethod
    def _take(event: dict[str, Any], timing: Timing, started: float) -> None:
        if "error" in event:
            raise RuntimeError(event["error"]["message"])
        for choice in event.get("choices", []):
            if text := choice["delta"].get("content"):
                timing.first_token = timing.first_token or time.perf_counter() - started
                timing.text += text
        if usage := event.get("usage"):
            timing.tokens = usage["completion_tokens"]
        if "ziya" in event:
            timing.stage_seconds = event["ziya"].get("stage_seconds", timing.stage_seconds)


class GrpcCaller:
    """One channel to the gateway's VisualChat."""

    def __init__(self, address: str) -> None:
        self._channel = rpc.connect(address)
        stub: Any = chat_pb2_grpc.VisualChatStub
        self._stub = stub(self._channel)

    async def ask(self, ask: Ask) -> Timing:
        parts = [chat_pb2.Part(image=chat_pb2.Image(data=ask.image))] if ask.image else []
        turn = chat_pb2.Turn(role=chat_pb2.ROLE_USER, parts=[*parts, chat_pb2.Part(text=ask.question)])
        sampling = chat_pb2.Sampling(temperature=0.0, max_tokens=ask.max_tokens, ignore_eos=ask.ignore_eos)
        timing, started = Timing(), time.perf_counter()
        async for chunk in self._stub.Chat(chat_pb2.ChatRequest(turns=[turn], sampling=sampling), timeout=120):
            if chunk.text:
                timing.first_token = timing.first_token or time.perf_counter() - started
                timing.text += chunk.text
            if chunk.finish_reason:
                timing.tokens = chunk.usage.completion_tokens
                timing.stage_seconds = dict(chunk.stage_seconds)
        timing.total = time.perf_counter() - started
        return timing

    async def close(self) -> None:
        await self._channel.close(None)


def _completion(ask: Ask) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": ask.question}]
    if ask.image:
        url = f"data:image/png;base64,{base64.b64encode(ask.image).decode()}"
        parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return {
        "model": "ziya-visual",
        "messages": [{"role": "user", "content": parts}],
        "temperature": 0,
        "max_tokens": ask.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"ignore_eos": True} if ask.ignore_eos else {}),
    }
