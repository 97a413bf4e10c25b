"""One question to a stack over its OpenAI HTTP API: pictures and text in, a stream of text out.

Only what a command shows is kept of the reply: the text as it comes, then a `Report`. Every way in which it
can fail is a CommandError with a sentence for a person.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from cli.text import CommandError
from ziya.errors import InvalidImage
from ziya.images import ImageLimits, inspect

MODEL = "ziya-visual"


@dataclass(frozen=True)
class Question:
    """`images` are URLs of http(s) or data: kind; absent sampling options leave the server's defaults."""

    images: Sequence[str]
    text: str
    sampling: dict[str, float | int] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in self.images]
        message = {"role": "user", "content": [*parts, {"type": "text", "text": self.text}]}
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        return {"model": MODEL, "messages": [message], **stream, **self.sampling}


@dataclass
class Report:
    """What is known when the answer is complete. Times are in seconds, seen from here."""

    answer: str = ""
    finish_reason: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    first_token: float = 0.0
    total: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """After the first token; None when there was no second one."""
        tokens, seconds = self.usage.get("completion_tokens", 0) - 1, self.total - self.first_token
        return tokens / seconds if tokens > 0 and seconds > 0 else None


def image_url(word: str) -> str:
    """The URL of an image argument: itself if it is one, else the file's bytes as a data: URL."""
    if word.startswith(("http://", "https://", "data:")):
        return word
    try:
        data = Path(word).read_bytes()
        kind, _, _ = inspect(data, ImageLimits())
    except OSError as error:
        raise CommandError(f"cannot read {word}: {(error.strerror or str(error)).lower()}", 2) from error
    except InvalidImage as error:
        raise CommandError(f"{word}: {error}") from error
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"


async def stream_answer(client: httpx.AsyncClient, question: Question, report: Report) -> AsyncIterator[str]:
    """Pieces of the answer as they come; fills `report`."""
    started = time.perf_counter()
    try:
        async with client.stream("POST", "/v1/chat/completions", json=question.body()) as reply:
            if reply.is_error:
                raise CommandError(_refusal(await reply.aread(), reply.status_code))
            async for line in reply.aiter_lines():
                if piece := _piece(line, report):
                    report.first_token = report.first_token or time.perf_counter() - started
                    report.answer += piece
                    yield piece
    except httpx.ConnectError as error:
        raise CommandError(f"nothing answers at {client.base_url}; start a stack with `ziya up`") from error
    except httpx.HTTPError as error:
        raise CommandError(f"the connection to {client.base_url} broke: {error or type(error).__name__}") from error
    report.total = time.perf_counter() - started


def _piece(line: str, report: Report) -> str:
    """The text in one line of the event stream, if any."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return ""
    event = json.loads(line.removeprefix("data: "))
    if "error" in event:
        raise CommandError(f"the answer broke off: {event['error']['message']}")
    if usage := event.get("usage"):
        details = usage.pop("prompt_tokens_details", None) or {}
        report.usage = {**usage, **details}
    report.stage_seconds = event.get("ziya", {}).get("stage_seconds", report.stage_seconds)
    text = ""
    for choice in event.get("choices", []):
        text += choice["delta"].get("content") or ""
        report.finish_reason = choice.get("finish_reason") or report.finish_reason
    return text


def _refusal(body: bytes, status: int) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered with status {status}, which is not one of ours: is --url right?"
