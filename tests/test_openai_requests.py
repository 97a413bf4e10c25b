"""Requests that the HTTP face refuses: each with a clear error that names the field."""

from __future__ import annotations

import base64
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.gateways import Scene, picture, scene

RED = picture("red")


@pytest.fixture
async def here(redis_url: str, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(redis_url, tmp_path) as made:
        yield made


def url_of(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def shown(*images: bytes, text: str = "What is this?") -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url_of(image)}} for image in images]
    return [*parts, {"type": "text", "text": text}]


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"5": "much"}}, "logit_bias"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.name"),
    ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
    ({"response_format": {"type": "json_object"}, "extra_body": {"ignore_eos": True}}, "ignore_eos"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": 2.5}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    ({"stop": [""]}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"seed": "one"}, "seed"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"extra_body": {"top_k": 1.5}}, "top_k"),
    ({"extra_body": {"topk": 1}}, "topk"),
    ({"extra_headers": {"X-Request-Timeout": "soon"}}, "X-Request-Timeout"),
]


async def test_bad_option_is_refused_by_name(here: Scene) -> None:
    for options, param in BAD_OPTIONS:
        with pytest.raises(openai.BadRequestError, match=param) as caught:
            await here.ask("hello", **options)
        assert caught.value.param == param
        assert caught.value.type == "invalid_request_error"


BAD_MESSAGES: list[tuple[list[Any], str]] = [
    ([], "messages"),
    ([{"role": "system", "content": "x"}], "messages"),
    ([{"role": "assistant", "content": "x"}], "messages.0"),
    ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "messages.1"),
    ([{"role": "tool", "content": "x"}], "messages.0.role"),
    ([{"role": "user", "content": None}], "messages.0.content"),
    ([{"role": "user", "content": "  "}], "messages.0"),
    ([{"role": "user", "content": "x", "colour": "red"}], "messages.0.colour"),
    ([{"role": "user", "content": [{"type": "video"}]}], "messages.0.content.0.type"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0.text"),
    ([{"role": "user", "content": [{"type": "image_id", "image_id": "abc"}]}], "messages.0.content.0.image_id"),
    ([{"role": "system", "content": shown(RED)}, {"role": "user", "content": "x"}], "messages.0"),
]


async def test_bad_message_is_refused_by_path(here: Scene) -> None:
    for messages, param in BAD_MESSAGES:
        with pytest.raises(openai.BadRequestError) as caught:
            await here.client.chat.completions.create(model="ziya-visual", messages=messages)
        assert caught.value.param == param


BAD_URLS = [
    ("data:image/png;base64,!!!!", "invalid_image"),
    ("data:image/png;base64", "invalid_image"),
    (f"data:text/plain;base64,{base64.b64encode(b'not an image').decode()}", "invalid_image"),
    ("ftp://example.org/a.png", "invalid_image_url"),
    ("http://example.org/a.png", "invalid_image_url"),
    ("https://127.0.0.1/a.png", "invalid_image_url"),
]


async def test_bad_image_is_refused_before_anything_is_asked(here: Scene) -> None:
    for stream, (url, code) in itertools.product((False, True), BAD_URLS):
        with pytest.raises(openai.BadRequestError) as caught:
            await here.ask([{"type": "image_url", "image_url": {"url": url}}], stream=stream)
        assert caught.value.code == code
        assert caught.value.param == "messages.0.content.0.image_url.url"
    assert here.behind.triton.opened == 0


HOSTILE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"model": "ziya-visual"}',
    b'{"model": 1, "messages": []}',
    b'{"messages": [], "model": NaN}',
    b"[" * 100_000,
    b'{"model": "ziya-visual", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "ziya-visual", "messages": {"0": 1}}',
    b"\xff\xfe\x00",
    b'{"model": "ziya-visual", "max_tokens": 1e999, "messages": [{"role": "user", "content": "x"}]}',
    b'{"model":"ziya-visual","max_tokens":99999999999999999999,"messages":[{"role":"user","content":"x"}]}',
]


async def test_hostile_body_is_a_clear_400(here: Scene) -> None:
    for body in HOSTILE:
        answer = await here.http.post("/v1/chat/completions", content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_too_large_a_body_is_refused(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, gateway_max_body_bytes=2000) as here:
        with pytest.raises(openai.APIStatusError) as caught:
            await here.ask("x" * 3000)
        assert caught.value.status_code == 413

        async def blocks() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b" " * 1000

        answer = await here.http.post("/v1/chat/completions", content=blocks())
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
