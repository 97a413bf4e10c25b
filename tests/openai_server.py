"""A stand-in for any server with OpenAI's chat API: real sockets, answers that a test writes step by step.

It speaks HTTP/1.1 by hand, so that it can also do what no library lets a server do: cut a stream in the middle, send
one byte at a time, forget the end. Each request takes the next script, and the last one again when none is left.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


class ManualClock:
    """Seconds that pass only when a test says so. `seen` counts how often somebody has looked."""

    def __init__(self) -> None:
        self.now = 0.0
        self._looks = 0

    def __call__(self) -> float:
        self._looks += 1
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    async def looked_at(self, before: int) -> None:
        while self._looks == before:
            await asyncio.sleep(0)

    @property
    def looks(self) -> int:
        return self._looks


@dataclass(frozen=True)
class At:
    """What follows is sent when the clock has been put to `now`, and read before the clock moves again."""

    now: float


@dataclass(frozen=True)
class Raw:
    """Bytes of the body, as one chunk."""

    data: bytes


@dataclass(frozen=True)
class Cut:
    """The connection ends here, in the middle of a chunk."""


@dataclass(frozen=True)
class Wait:
    """The server is silent until the event is set."""

    event: asyncio.Event


Step = At | Raw | Cut | Wait


@dataclass
class Script:
    """How one request is answered. `framing` is chunked, counted or close; `split` sends one byte at a time."""

    steps: Sequence[Step] = ()
    status: int = 200
    kind: str = "text/event-stream; charset=utf-8"
    framing: str = "chunked"
    split: bool = False


def event(data: Any) -> Raw:
    return Raw(b"data: " + json.dumps(data).encode() + b"\n\n")


def text(words: str) -> Raw:
    return event({"choices": [{"index": 0, "delta": {"content": words}, "finish_reason": None}]})


def finish(reason: str = "stop") -> Raw:
    return event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})


def usage(prompt: int, completion: int, **details: int) -> Raw:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
    return event({"choices": [], "usage": counts})


ROLE = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
DONE = Raw(b"data: [DONE]\n\n")
ANSWER = (ROLE, text("a"), text(" b"), text(" c"), finish("length"), usage(9, 3), DONE)


def error(status: int, message: str) -> Script:
    body = json.dumps({"error": {"message": message, "type": "some_error"}}).encode()
    return Script((Raw(body),), status, "application/json", "counted")


@dataclass
class OpenAIServer:
    """Counts what it sees. `before` is awaited with each request when it has been read."""

    scripts: list[Script]
    clock: ManualClock | None = None
    before: Callable[[dict[str, Any]], Awaitable[None]] | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)
    connections: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    port: int = 0
    secure: bool = False
    models: Sequence[str] = ("fake-model",)

    @property
    def url(self) -> str:
        return f"{'https' if self.secure else 'http'}://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await self._head(reader):
                if head["line"].startswith("GET"):
                    models = json.dumps({"data": [{"id": name, "owned_by": "tests"} for name in self.models]}).encode()
                    await self._answer(Script((Raw(models),), 200, "application/json", "counted"), writer)
                    continue
                self.heads.append(head)
                self.bodies.append(json.loads(await reader.readexactly(int(head["content-length"]))))
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    if self.before:
                        await self.before(self.bodies[-1])
                    script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
                    if not await self._answer(script, writer):
                        return
                finally:
                    self.in_flight -= 1
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _head(self, reader: asyncio.StreamReader) -> dict[str, str]:
        raw = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *lines = raw.strip().split("\r\n")
        return {"line": line} | {
            name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)
        }

    async def _answer(self, script: Script, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        length = sum(len(step.data) for step in script.steps if isinstance(step, Raw))
        framing = {"chunked": "Transfer-Encoding: chunked\r\n", "counted": f"Content-Length: {length}\r\n", "close": ""}
        head = f"HTTP/1.1 {script.status} Whatever\r\nContent-Type: {script.kind}\r\n{framing[script.framing]}\r\n"
        writer.write(head.encode())
        looks = None
        for step in script.steps:
            if isinstance(step, Cut):
                writer.write(b"ff\r\ndata: {" if script.framing == "chunked" else b"")
                await writer.drain()
                return False
            if isinstance(step, Wait):
                await writer.drain()
                await step.event.wait()
            elif isinstance(step, At):
                assert self.clock is not None
                if looks is not None:
                    await self.clock.looked_at(looks)
                self.clock.now, looks = step.now, None
            else:
                looks = self.clock.looks if self.clock else None
                await self._send(step.data, script, writer)
        if script.framing == "chunked":
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return script.framing != "close"

    async def _send(self, data: bytes, script: Script, writer: asyncio.StreamWriter) -> None:
        for piece in [data[i : i + 1] for i in range(len(data))] if script.split else [data]:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if script.framing == "chunked" else piece)
            await writer.drain()


@asynccontextmanager
async def openai_server(
    *scripts: Script, clock: ManualClock | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[OpenAIServer]:
    """Serves on a free port. Without scripts every request gets three words."""
    here = OpenAIServer(list(scripts) or [Script(ANSWER)], clock, secure=tls is not None)
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await here.serve(reader, writer)
        except asyncio.CancelledError:
            pass  # at the end of the test
        finally:
            serving.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 24, ssl=tls)
    here.port = server.sockets[0].getsockname()[1]
    try:
        yield here
    finally:
        server.close()
        for task in list(serving):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
