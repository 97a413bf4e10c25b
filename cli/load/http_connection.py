"""HTTP/1.1 as a load generator needs it: a request written at once, a body whose pieces are seen when they arrive.

A comfortable client library takes milliseconds of the very processor that is measured, for each request. Bodies are
chunked, counted or end with the connection; one that ends early is an error, never an end.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Self
from urllib.parse import SplitResult

from cli.load.request import Failed

LINE_BYTES = 1 << 20
READ_BYTES = 1 << 16


class Connection:
    """One connection, one request at a time. Every failure of it is a Failed."""

    def __init__(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host, self._reader, self._writer = host, reader, writer
        self._keep = True
        self._ended = True
        self.status = 0
        self.headers: dict[str, str] = {}

    @classmethod
    async def open(cls, url: SplitResult, context: ssl.SSLContext | None = None) -> Self:
        """`context` is for https, and making one takes its time. Raises Failed."""
        port = url.port or (80 if context is None else 443)
        try:
            reader, writer = await asyncio.open_connection(url.hostname, port, ssl=context, limit=LINE_BYTES)
        except OSError as error:
            raise Failed("connect", f"cannot connect to {url.netloc}: {error.strerror or error}") from error
        return cls(url.netloc.rpartition("@")[2], reader, writer)

    @property
    def reusable(self) -> bool:
        """The last body was read to its end, and neither side has said goodbye."""
        return self._keep and self._ended and not self._reader.at_eof()

    def close(self) -> None:
        self._writer.close()

    async def closed(self) -> None:
        self.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def post(self, path: str, headers: dict[str, str], body: bytes) -> None:
        """Sends, and reads the head of the reply into `status` and `headers`."""
        self._ended = False
        lines = {"Host": self._host, **headers, "Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        try:
            self._writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
            await self._writer.drain()
            await self._read_head()
        except (OSError, EOFError) as error:
            raise Failed("broken", "the server closed the connection before its reply") from error

    async def body(self) -> AsyncIterator[bytes]:
        """The body as it arrives."""
        try:
            if "chunked" in self.headers.get("transfer-encoding", "").lower():
                async for chunk in self._chunks():
                    yield chunk
            elif "content-length" in self.headers:
                yield await self._reader.readexactly(int(self.headers["content-length"]))
            else:
                self._keep = False
                while data := await self._reader.read(READ_BYTES):
                    yield data
        except (OSError, EOFError) as error:
            raise Failed("broken", "the connection broke in the middle of the answer") from error
        except ValueError as error:
            raise Failed("malformed", f"the reply is not HTTP/1.1: {error}") from error
        self._ended = True

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int((await self._line()).partition(b";")[0], 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        while await self._line():
            pass  # trailers

    async def _read_head(self) -> None:
        first = await self._line()
        try:
            version, status, *_ = first.split(b" ", 2)
            self.status = int(status)
        except ValueError as error:
            raise Failed("malformed", f"the reply is not HTTP/1.1: it begins with {first[:40]!r}") from error
        self.headers = {}
        while line := await self._line():
            name, _, value = line.decode("latin-1").partition(":")
            self.headers[name.strip().lower()] = value.strip()
        asked = self.headers.get("connection", "keep-alive" if version == b"HTTP/1.1" else "close")
        self._keep = asked.lower() != "close"

    async def _line(self) -> bytes:
        line = await self._reader.readuntil(b"\n")
        return line.rstrip(b"\r\n")
