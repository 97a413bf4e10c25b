"""Asks a server that speaks OpenAI's chat API, streaming: ours, vLLM's, llama.cpp's and others.

An answer is complete when a finish reason has come and the body did not break. Text is `content`, and the thoughts
that some servers send beside it; the opening event that names the role is no text.
"""

from __future__ import annotations

import base64
import json
import ssl
import time
from collections import deque
from typing import Any
from urllib.parse import urlsplit

from cli.load.event_stream import EventStream
from cli.load.http_connection import Connection
from cli.load.request import Answer, Clock, Failed, Options, Picture, Request, Usage
from ziya.prompt import Turn

IDLE_SECONDS = 2.0  # servers close idle connections after five seconds or more, and may do so as we write
FAILED_REASONS = {"abort", "error", "cancelled"}
TEXTS = ("content", "reasoning_content", "reasoning")
DONE = b"[DONE]"


class OpenAICaller:
    """`base` is the URL before /chat/completions. Connections are kept and used again."""

    def __init__(self, base: str, model: str, options: Options, clock: Clock, api_key: str | None = None) -> None:
        self._url = urlsplit(base)
        self._tls = ssl.create_default_context() if self._url.scheme == "https" else None
        self._path = f"{self._url.path}/chat/completions" + (f"?{self._url.query}" if self._url.query else "")
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._model, self._options, self._clock = model, options, clock
        self._idle: deque[tuple[float, Connection]] = deque()

    async def ask(self, request: Request, answer: Answer) -> None:
        body = json.dumps(self._body(request), ensure_ascii=False).encode()
        connection = self._kept() or await Connection.open(self._url, self._tls)
        try:
            await connection.post(self._path, self._headers, body)
            if connection.status != 200:
                raise Failed(f"http {connection.status}", await _refusal(connection))
            await self._read(connection, answer)
        finally:
            if connection.reusable:
                self._idle.append((time.monotonic(), connection))
            else:
                connection.close()

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop()[1].closed()

    def _kept(self) -> Connection | None:
        while self._idle:
            since, connection = self._idle.pop()
            if connection.reusable and time.monotonic() - since < IDLE_SECONDS:
                return connection
            connection.close()
        return None

    async def _read(self, connection: Connection, answer: Answer) -> None:
        kind = connection.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            raise Failed("malformed", f"the answer is not an event stream but {kind or 'of no type'}")
        events = EventStream()
        async for arrived in connection.body():
            now = self._clock()
            for data in events.feed(arrived):
                if data == DONE:
                    answer.ended = now
                else:
                    _take(data, answer, now)
        if not answer.finish_reason:
            raise Failed("broken", "the stream ended without a finish reason")
        if answer.finish_reason in FAILED_REASONS:
            raise Failed("error in stream", f"the server ended the answer with {answer.finish_reason!r}")
        if not answer.pieces:
            raise Failed("empty", "the answer ended without any text")

    def _body(self, request: Request) -> dict[str, Any]:
        options = self._options
        return {
            "model": self._model,
            "messages": [_message(turn) for turn in request.turns],
            "max_tokens": request.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({} if options.temperature is None else {"temperature": options.temperature}),
            **({"ignore_eos": True} if options.ignore_eos else {}),
            **options.extra,
        }


def _message(turn: Turn[Picture]) -> dict[str, Any]:
    if not turn.images:
        return {"role": turn.role, "content": turn.text}
    urls = [f"data:image/{image.kind};base64,{base64.b64encode(image.data).decode()}" for image in turn.images]
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": turn.role, "content": [*parts, {"type": "text", "text": turn.text}]}


def _take(data: bytes, answer: Answer, now: float) -> None:
    try:
        event = json.loads(data)
        if error := event.get("error"):
            raise Failed("error in stream", _sentence(error))
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            if any(delta.get(name) for name in TEXTS):
                answer.pieces.append(now)
                answer.text += delta.get("content") or ""
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        if usage := event.get("usage"):
            answer.usage = _usage(usage)
        answer.stages = (event.get("ziya") or {}).get("stage_seconds", answer.stages)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Failed("malformed", f"an event of the stream is not OpenAI's: {data[:200]!r}") from error


def _usage(usage: dict[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details") or {}
    cached, image = details.get("cached_tokens") or 0, details.get("image_tokens") or 0
    return Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"]), int(cached), int(image))


async def _refusal(connection: Connection) -> str:
    body = b"".join([chunk async for chunk in connection.body()])
    try:
        error = json.loads(body)
        return _sentence(error.get("error") or error)
    except (ValueError, AttributeError):
        return body[:200].decode("utf-8", "replace").strip() or "without a word"


def _sentence(error: Any) -> str:
    return str(error.get("message") or error) if isinstance(error, dict) else str(error)
