"""Inputs that fuzzing found: each once brought an error of ours, an outage, or minutes of work, and is refused now.

Files of images are in test_image_parts.py, what a web server may answer in test_fetch.py, connections in
test_http_connection.py.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.gateway.openai.request import parse
from services.llama import request as llama
from tests.fakes import CONFIG
from tests.gateways import scene
from ziya.errors import BadField, InvalidRequest

USER = {"role": "user", "content": "hello"}
# An integer of JSON that no float can hold.
HUGE = 10**400


def body(**changes: Any) -> bytes:
    return json.dumps({"model": "ziya-visual", "messages": [USER], **changes}).encode()


BODIES: list[dict[str, Any]] = [
    *({name: number} for name in ("temperature", "top_p", "repetition_penalty") for number in (HUGE, -HUGE)),
    *({name: HUGE} for name in ("max_tokens", "top_k", "seed", "presence_penalty")),
    {"logit_bias": {"5": HUGE}},
    {"n": HUGE},
]


@pytest.mark.parametrize("change", BODIES, ids="-".join)
def test_numbers_that_no_float_can_hold(change: dict[str, Any]) -> None:
    with pytest.raises(BadField):
        parse(body(**change))


@pytest.mark.parametrize("change", BODIES[:1])
async def test_and_over_http(redis_url: str, tmp_path: Path, change: dict[str, Any]) -> None:
    async with scene(redis_url, tmp_path) as here:
        answer = await here.http.post("/v1/chat/completions", content=body(**change))
        assert answer.status_code == 400


@pytest.mark.parametrize("host", ["[::1", "a@b:c", "evil.example", "x:99999"])
@pytest.mark.parametrize("path", ["/nowhere", "/healthz/", "/v1/chat/completions/", "//evil.example/"])
async def test_hosts_that_clients_make_up(redis_url: str, tmp_path: Path, host: str, path: str) -> None:
    """An error of ours for one that is no host, and a redirect to one that is."""
    async with scene(redis_url, tmp_path) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.gateway.http_port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 405 "))
        assert b"location" not in answer.lower()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": HUGE},
        {"top_p": -HUGE},
        {"logit_bias": {"5": HUGE}},
        {"deadline": HUGE},
        {"deadline": 1e300},
        {"temperature": float("nan")},
        {"top_p": float("inf")},
    ],
    ids=str,
)
def test_numbers_that_the_language_model_cannot_use(options: dict[str, Any]) -> None:
    sampling = np.array([json.dumps(options).encode()], dtype=np.object_)
    prompt = np.array([b"x"], dtype=np.object_)
    with pytest.raises(InvalidRequest):
        llama.parse(llama.Inputs(prompt, sampling=sampling), CONFIG, 60)


@pytest.mark.parametrize("value", [np.float16(np.nan), np.float16(np.inf), np.float64(1e5)])
def test_visual_tokens_that_are_no_numbers(value: Any) -> None:
    tokens = np.zeros((1, CONFIG.queries, CONFIG.qformer_width), value.dtype)
    tokens[0, -1, -1] = value
    with pytest.raises(InvalidRequest, match="not finite"):
        llama.parse(llama.Inputs(np.array([b"a", b"b"], dtype=np.object_), visual_tokens=tokens), CONFIG, 60)
