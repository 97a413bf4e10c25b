"""What goes back on one HTTP request: server-sent events, one JSON body, or an error.

The status line waits for the first text, so that whatever fails before it fails with its own status. A stream
that stays silent gets comments as heartbeats, which begin the response; from then on an error is an event in
OpenAI's shape, followed by the usual end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any

from starlette.types import Send

from services.gateway.job import Summary
from services.gateway.llama import Piece
from services.gateway.openai.error import error_headers, error_json
from services.gateway.openai.response import DONE, HEARTBEAT, Shape
from services.gateway.together import cancel
from ziya.errors import ZiyaError, status_of

_SSE_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


class Reply:
    """Writes one response. `heartbeat`: seconds of silence after which a stream gets a comment."""

    def __init__(self, send: Send, heartbeat: float) -> None:
        self._send = send
        self._heartbeat = heartbeat
        self._headers: dict[str, str] = {}
        self._started = False
        self._ended = False
        self._last_sent = time.monotonic()

    def tell(self, headers: Mapping[str, str]) -> None:
        """Headers that the answer will have, if it has not begun."""
        self._headers.update(headers)

    async def whole(self, shape: Shape, pieces: AsyncIterator[Piece | Summary]) -> None:
        """One JSON body at the end."""
        texts: list[str] = []
        logprobs: list[dict[str, Any]] = []
        body = b""
        async for piece in pieces:
            if isinstance(piece, Summary):
                body = shape.whole("".join(texts), piece, logprobs)
            else:
                texts.append(piece.text)
                logprobs += piece.logprobs
        await self._json(HTTPStatus.OK, body, {})

    async def stream(self, shape: Shape, pieces: AsyncIterator[Piece | Summary]) -> None:
        """Events as the pieces come."""
        beat = asyncio.create_task(self._beat())
        opening = shape.first()
        try:
            async for piece in pieces:
                event = shape.last(piece) if isinstance(piece, Summary) else shape.piece(piece.text, piece.logprobs)
                await self._event(opening + event)
                opening = b""
        finally:
            await cancel([beat])
        await self._body(b"", end=True)

    async def fail(self, error: ZiyaError) -> None:
        """The error with its own status where that is still possible, else as the stream's last event."""
        if not self._started:
            await self._json(status_of(error)[1], error_json(error), error_headers(error))
        elif not self._ended:
            await self._body(b"data: " + error_json(error) + b"\n\n" + DONE, end=True)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat)
            if time.monotonic() - self._last_sent >= self._heartbeat:
                await self._event(HEARTBEAT)

    async def _event(self, data: bytes) -> None:
        if not self._started:
            await self._start(HTTPStatus.OK, _SSE_HEADERS)
        await self._body(data, end=False)

    async def _json(self, status: HTTPStatus, body: bytes, headers: Mapping[str, str]) -> None:
        length = {"content-type": "application/json", "content-length": str(len(body))}
        await self._start(status, {**length, **headers})
        await self._body(body, end=True)

    async def _start(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self._started = True
        raw = [(name.lower().encode(), value.encode()) for name, value in {**self._headers, **headers}.items()]
        await self._send({"type": "http.response.start", "status": int(status), "headers": raw})

    async def _body(self, data: bytes, *, end: bool) -> None:
        self._ended = end
        self._last_sent = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": not end})
