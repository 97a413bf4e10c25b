"""A connection to a stranger: uvicorn's, with bounds on what uvicorn waits for and remembers without any.

uvicorn keeps headers, trailers and an unfinished head for as long as they come. Here a head must be whole within some
seconds and some bytes, what is neither a head nor a body (chunk extensions, trailers) has the same number of bytes,
and a client that goes on sending a body after its answer has left is shut out soon.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.gateway.openai.error import plain_error


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bytes of a request's line, headers and trailers; seconds for its head; seconds of body after the answer."""

    head_bytes: int = 64 << 10
    head_seconds: float = 10.0
    linger_seconds: float = 2.0


class Connection(HttpToolsProtocol):
    """The methods are asyncio's and httptools' own. uvicorn makes one a connection."""

    def __init__(self, *given: Any, bounds: Bounds, **named: Any) -> None:
        super().__init__(*given, **named)
        self._bounds = bounds
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0  # of this request's line, headers and trailers
        self._steps = 0  # counts what came to an end
        self._pending = 0  # bytes since then

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._keep()  # uvicorn waits for ever for a first byte, and so long for the next request

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._idle() and self._timer is None:
            self._start(self._bounds.head_seconds, self._refuse, HTTPStatus.REQUEST_TIMEOUT)
        steps = self._steps
        super().data_received(data)
        self._pending = 0 if self._steps != steps else self._pending + len(data)
        if self._pending > self._bounds.head_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._steps += 1
        self._stop()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._steps += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._steps += 1
        if self._timer is not None:  # the rest of a body whose answer has left
            self._stop()
            self._keep()
        self.cycle.more_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.more_body and not self.transport.is_closing():
            self._start(self._bounds.linger_seconds, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST)

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._bounds.head_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            raise ValueError("too large a head")  # ends the parser's work on these bytes

    def _refuse(self, status: HTTPStatus) -> None:
        """Says why, unless an answer is under way, and closes."""
        if self.transport.is_closing():
            return
        if self._idle():
            body = json.dumps(plain_error(_SENTENCES[status], status)).encode()
            head = f"HTTP/1.1 {status} {status.phrase}\r\nContent-Type: application/json\r\nConnection: close\r\n"
            self.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()

    def _keep(self) -> None:
        """As long as between two requests."""
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _start(self, seconds: float, end: Callable[..., None], *given: Any) -> None:
        self._stop()
        self._timer = self.loop.call_later(seconds, end, *given)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


_SENTENCES = {
    HTTPStatus.BAD_REQUEST: "this is not HTTP as it should be",
    HTTPStatus.REQUEST_TIMEOUT: "the head of the request did not come to its end in time",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "the line and the headers of the request are too large",
}
