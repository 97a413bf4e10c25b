"""A call that a server has not looked at is sent again, as by every gRPC client; one that it may have begun is not."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from cli.load.grpc_caller import GrpcCaller
from cli.load.request import Answer, Failed, Options
from protos import chat_pb2
from tests.load import question
from tests.openai_server import ManualClock

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1
# HPACK (RFC 7541): entry 8 of its table is `:status: 200`; entry 31, `content-type`, comes with a value; a new name.
STATUS_200 = b"\x88\x5f\x10application/grpc"
TRAILERS = b"\x00\x0bgrpc-status\x010"


@dataclass
class Closing:
    """Speaks HTTP/2. To its first call it says that it takes none later than stream `last`, and hangs up.

    On a later connection it answers each call with one chunk.
    """

    last: int
    calls: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.append(asyncio.ensure_future(self._speak(reader, writer)))

    async def _speak(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readexactly(len(PREFACE))
            writer.write(_frame(SETTINGS))
            while not writer.is_closing():
                head = await reader.readexactly(9)
                size, kind, flags, stream = int.from_bytes(head[:3]), head[3], head[4], int.from_bytes(head[5:])
                payload = await reader.readexactly(size)
                if kind in (SETTINGS, PING) and not flags & ACK:
                    writer.write(_frame(kind, ACK, payload=payload if kind == PING else b""))
                elif kind == HEADERS:
                    self.calls += 1
                elif kind == DATA and flags & END_STREAM:
                    writer.write(_answer(stream) if self.calls > 1 else _goaway(self.last))
                    if self.calls == 1:
                        writer.close()
        writer.close()
        await writer.wait_closed()


def _frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _goaway(last: int) -> bytes:
    return _frame(GOAWAY, payload=struct.pack(">II", last, 0))


def _answer(stream: int) -> bytes:
    chunk = chat_pb2.ChatChunk(text="a cat", finish_reason="stop").SerializeToString()
    message = b"\0" + struct.pack(">I", len(chunk)) + chunk
    return (
        _frame(HEADERS, END_HEADERS, stream, STATUS_200)
        + _frame(DATA, 0, stream, message)
        + _frame(HEADERS, END_HEADERS | END_STREAM, stream, TRAILERS)
    )


@asynccontextmanager
async def closing(last: int) -> AsyncIterator[tuple[Closing, str]]:
    fake = Closing(last)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    async with server:
        yield fake, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await asyncio.gather(*fake.tasks)


async def ask(target: str) -> Answer:
    caller = GrpcCaller(target, "m", Options(), ManualClock())
    answer = Answer(question(), intended=0.0)
    try:
        await caller.ask(answer.request, answer)
    finally:
        await caller.close()
    return answer


async def test_a_call_that_the_server_has_not_looked_at_is_sent_again() -> None:
    async with closing(last=0) as (fake, target):
        answer = await ask(target)
    assert (answer.text, answer.finish_reason) == ("a cat", "stop")
    assert fake.calls == 2


async def test_a_call_that_the_server_may_have_begun_is_a_failure() -> None:
    async with closing(last=1) as (fake, target):
        with pytest.raises(Failed, match=r"GOAWAY|Socket closed|removed"):
            await ask(target)
    assert fake.calls == 1
