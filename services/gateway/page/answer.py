"""One question to the gateway's own HTTP API, as any client asks it: the same keys, limits and deadline, no back door.

Closing the generator closes the connection, by which the gateway cancels the work in every stage.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Answer:
    """What has come so far. Times are in seconds, seen from here; `stages` as the gateway tells them."""

    text: str = ""
    finish: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    first: float | None = None
    total: float = 0.0


class Refused(Exception):
    """The gateway's error; `wait` is its Retry-After in seconds, 0 without."""

    def __init__(self, status: int, code: str, message: str, *, wait: int = 0, request: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.wait, self.request = wait, request


async def stream(client: httpx.AsyncClient, body: dict[str, Any], key: str) -> AsyncGenerator[Answer, None]:
    """The answer, after each piece of it anew. Raises Refused, and httpx.HTTPError without a gateway."""
    began, answer = time.monotonic(), Answer()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    whole = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", "/v1/chat/completions", json=whole, headers=headers) as reply:
        if reply.is_error:
            raise _refusal(reply, await reply.aread())
        async for line in reply.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            _take(json.loads(line.removeprefix("data: ")), answer)
            answer.total = time.monotonic() - began
            if answer.text and answer.first is None:
                answer.first = answer.total
            yield answer


async def models(client: httpx.AsyncClient, key: str) -> list[str]:
    """The names that `/v1/models` lists; none where it lists nothing to this key."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        reply = await client.get("/v1/models", headers=headers)
    except httpx.HTTPError:
        return []
    return [] if reply.is_error else [str(model["id"]) for model in reply.json()["data"]]


def _take(event: dict[str, Any], answer: Answer) -> None:
    if "error" in event:
        error = event["error"]
        raise Refused(0, str(error.get("code") or ""), str(error["message"]))
    for choice in event.get("choices", []):
        answer.text += choice["delta"].get("content") or ""
        answer.finish = choice.get("finish_reason") or answer.finish
    answer.usage = event.get("usage") or answer.usage
    answer.stages = event.get("ziya", {}).get("stage_seconds", answer.stages)


def _refusal(reply: httpx.Response, body: bytes) -> Refused:
    try:
        error = json.loads(body)["error"]
        code, message = str(error.get("code") or ""), str(error["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "", f"HTTP status {reply.status_code}"
    wait = reply.headers.get("retry-after", "")
    request = reply.headers.get("x-request-id", "")
    return Refused(reply.status_code, code, message, wait=int(wait) if wait.isdecimal() else 0, request=request)
