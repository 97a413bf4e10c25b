"""Connections that never end what they begin, over real sockets: each is answered or shut, and costs no more memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from services.gateway import web_server
from services.gateway.http_connection import Bounds

LONG = Bounds(head_bytes=4096, head_seconds=60, linger_seconds=60)
SHORT = Bounds(head_bytes=4096, head_seconds=0.05, linger_seconds=0.05)
HEAD = b"POST /read HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Wire:
    """The client's end. Reading to the end ends only when the server has closed."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """Writes; a server that has closed already is no error here."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            pass

    async def answer(self) -> bytes:
        """One whole answer with a Content-Length."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return head + await self.reader.readexactly(length)

    async def rest(self) -> bytes:
        """What comes until the server closes, or resets after having said something."""
        got = b""
        try:
            while block := await self.reader.read(65536):
                got += block
        except ConnectionError:
            pass
        return got


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """/read reads the body; any other path answers at once."""
    request = Request(scope, receive)
    try:
        size = len(await request.body()) if request.url.path == "/read" else 0
    except ClientDisconnect:
        return
    await PlainTextResponse(f"read {size}")(scope, receive, send)


@asynccontextmanager
async def connected(bounds: Bounds) -> AsyncIterator[Wire]:
    async with web_server.serving(app, "127.0.0.1", 0, bounds) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        yield Wire(reader, writer)
        writer.close()


@pytest.mark.parametrize(
    "flood",
    [
        (b"GET /", b"a" * 1000),
        (HEAD + b"X: ", b"a" * 1000),
        (HEAD, b"A: b\r\n" * 100),
        (HEAD + b"A", b"a" * 1000),
        (CHUNKED + b"1;e=", b"a" * 1000),
        (CHUNKED + b"0\r\n", b"A: b\r\n" * 100),
        (CHUNKED + b"0\r\nA: ", b"a" * 1000),
        (b"", b"\r\n" * 500),
    ],
    ids=["path", "header", "headers", "name", "chunk extension", "trailers", "trailer", "empty lines"],
)
async def test_what_has_no_end_is_cut(flood: tuple[bytes, bytes]) -> None:
    first, more = flood
    async with connected(LONG) as wire:
        await wire.send(first)
        sending = asyncio.create_task(_for_ever(wire, more))
        await wire.rest()
        await sending


async def _for_ever(wire: Wire, block: bytes) -> None:
    """Until the server has closed."""
    while not wire.reader.at_eof() and wire.reader.exception() is None:
        await wire.send(block)
        await asyncio.sleep(0)


async def test_too_large_a_head_is_told_in_our_shape() -> None:
    async with connected(LONG) as wire:
        await wire.send(HEAD + b"X: " + b"a" * 5000 + b"\r\n\r\n")
        head, _, body = (await wire.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 431 ")
        assert json.loads(body)["error"]["type"] == "invalid_request_error"


async def test_what_is_not_http_is_told_in_our_shape() -> None:
    async with connected(LONG) as wire:
        await wire.send(b"\x16\x03\x01 hello\r\n\r\n")
        head, _, body = (await wire.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("begun", [b"G", b"GET / HTTP/1.1\r\n", HEAD, b"\r\n"])
async def test_a_head_that_does_not_end_is_given_up(begun: bytes) -> None:
    async with connected(SHORT) as wire:
        await wire.send(begun)
        assert (await wire.rest()).startswith(b"HTTP/1.1 408 ")


async def test_a_second_head_that_does_not_end_is_given_up() -> None:
    async with connected(SHORT) as wire:
        await wire.send(WHOLE)
        await wire.answer()
        await wire.send(b"GET")
        assert (await wire.rest()).startswith(b"HTTP/1.1 408 ")


async def test_a_body_whose_answer_has_left_is_not_read_for_ever() -> None:
    async with connected(SHORT) as wire:
        await wire.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx")
        assert b"read 0" in await wire.rest()


async def test_a_connection_is_kept_and_bodies_of_any_size_are_read() -> None:
    async with connected(LONG) as wire:
        for _ in range(3):
            await wire.send(HEAD + b"Content-Length: 300000\r\n\r\n" + b"x" * 300_000)
            assert (await wire.answer()).endswith(b"read 300000")
            await wire.send(CHUNKED + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n")
            assert (await wire.answer()).endswith(b"read 20000")
        await wire.send(WHOLE * 3)
        for _ in range(3):
            assert (await wire.answer()).endswith(b"read 0")


async def test_who_ends_a_refused_body_may_go_on() -> None:
    async with connected(LONG) as wire:
        await wire.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nxx")
        await wire.answer()
        await wire.send(b"xx" + WHOLE)
        assert (await wire.answer()).endswith(b"read 0")
