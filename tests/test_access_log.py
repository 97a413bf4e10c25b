"""The gateway's access log: one line a request, over either face, of how it went and never of what was in it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest

from protos import chat_pb2 as pb
from protos.chat_pb2_grpc import VisualChatStub
from tests.fakes import Gate
from tests.gateways import Scene, picture, scene, shown, until
from ziya.errors import InvalidRequest
from ziya.telemetry import JsonFormatter

SECRET_KEY = "a-key-that-nobody-may-read"
QUESTION = "我的秘密问题 my secret question"


class Log:
    """What the gateway's process would write, whole and line by line."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    @property
    def _ended(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["msg"] == "request ended"]

    async def ended(self, number: int = 1) -> list[dict[str, Any]]:
        """So many lines, which come a moment after their answers."""

        async def enough() -> bool:
            return len(self._ended) >= number

        await until(enough)
        return self._ended


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    handler = logging.StreamHandler(log.stream)
    handler.setFormatter(JsonFormatter("gateway"))
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield log
    root.removeHandler(handler)
    root.setLevel(before)


@pytest.fixture
async def here(redis_url: str, tmp_path: Path, log: Log) -> AsyncIterator[Scene]:
    """`log` first, so that it hears of everything."""
    async with scene(redis_url, tmp_path, gateway_api_keys=SECRET_KEY) as made:
        made.client.api_key = SECRET_KEY
        yield made


async def test_an_answer_is_one_line_with_its_cost(here: Scene, log: Log) -> None:
    answer = await here.ask(shown(picture(), QUESTION), extra_headers={"X-Request-Id": "my-own-id"})
    [line] = await log.ended()
    assert (line["face"], line["method"], line["status"]) == ("http", "POST /v1/chat/completions", 200)
    assert (line["outcome"], line["request_id"], line["client"]) == ("ok", "my-own-id", "127.0.0.1")
    assert (line["model"], line["images"], line["finish_reason"]) == ("ziya-visual", 1, "stop")
    assert line["prompt_tokens"] == answer.usage.prompt_tokens
    assert line["completion_tokens"] == answer.usage.completion_tokens
    assert line["stage_seconds"] == answer.ziya["stage_seconds"]
    assert 0 < line["ttft_seconds"] <= line["seconds"]
    assert line["key"]
    assert "trace_id" not in line


async def test_the_callers_trace_is_in_every_line_even_if_nobody_takes_spans(here: Scene, log: Log) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    await here.ask("hello", extra_headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    await here.ask("hello", extra_headers={"traceparent": "00-not-a-trace"})
    first, second = await log.ended(2)
    assert first["trace_id"] == trace
    assert "trace_id" not in second
    assert [asked.sampling.get("traceparent", "")[3:35] for asked in here.behind.triton.asked] == [trace, ""]


async def test_a_call_over_grpc_is_one_line_of_the_same_kind(here: Scene, log: Log) -> None:
    await over_grpc(here, SECRET_KEY)
    [line] = await log.ended()
    assert (line["face"], line["method"], line["status"]) == ("grpc", "VisualChat/Chat", "OK")
    assert (line["outcome"], line["client"], line["images"]) == ("ok", "127.0.0.1", 0)
    assert line["completion_tokens"] > 0
    assert line["request_id"]


async def test_a_refusal_is_a_line_too(here: Scene, log: Log) -> None:
    with pytest.raises(openai.BadRequestError):
        await here.ask(QUESTION, temperature=9)
    with pytest.raises(openai.AuthenticationError):
        await here.ask(QUESTION, extra_headers={"Authorization": "Bearer wrong-secret"})
    with pytest.raises(grpc.aio.AioRpcError):
        await over_grpc(here, "another-wrong-secret")
    await here.http.get("/v1/nothing?token=in-the-query")
    ended = await log.ended(4)
    bad, unknown, called, lost = ended
    assert (bad["status"], bad["outcome"], bad["param"]) == (400, "BadField", "temperature")
    assert (unknown["status"], unknown["outcome"]) == (401, "Unauthenticated")
    assert (called["status"], called["outcome"]) == ("UNAUTHENTICATED", "Unauthenticated")
    assert (lost["status"], lost["method"]) == (404, "GET /v1/nothing")
    assert all("ttft_seconds" not in line for line in ended)


async def test_who_leaves_is_told_apart_from_who_is_answered(here: Scene, log: Log) -> None:
    gate = here.behind.triton.pause = Gate()
    asking = asyncio.create_task(here.ask(QUESTION))
    await gate.reached.wait()
    asking.cancel()
    [line] = await log.ended()
    assert (line["status"], line["outcome"]) == (408, "Cancelled")


async def test_whose_time_is_over_is_told_apart_from_who_leaves(here: Scene, log: Log) -> None:
    here.behind.triton.pause = Gate()
    with pytest.raises(grpc.aio.AioRpcError):
        await over_grpc(here, SECRET_KEY, timeout=0.5)
    [line] = await log.ended()
    assert (line["status"], line["outcome"]) == ("DEADLINE_EXCEEDED", "DeadlineExceeded")


async def test_probes_are_no_lines_but_for_those_who_debug(here: Scene, log: Log) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        await here.http.get(path)
    assert {(line["method"], line["level"]) for line in await log.ended(3)} == {
        ("GET /healthz", "DEBUG"),
        ("GET /readyz", "DEBUG"),
        ("GET /metrics", "DEBUG"),
    }


async def test_nothing_that_a_client_sends_is_in_the_log(here: Scene, log: Log) -> None:
    """Not in an answer's line, nor in that of an error whose sentence quotes the request."""
    image = picture("green")
    await here.ask(shown(image, QUESTION))
    await over_grpc(here, SECRET_KEY)
    for broken in ({"role": QUESTION}, {"role": "user", "content": QUESTION, "name": "x", QUESTION: 1}):
        body = {"model": "ziya-visual", "messages": [broken]}
        headers = {"Authorization": f"Bearer {SECRET_KEY}"}
        reply = await here.http.post("/v1/chat/completions", json=body, headers=headers)
        assert reply.status_code == 400
    header = {"Authorization": f"Bearer {SECRET_KEY}", "X-Request-Timeout": QUESTION.split()[1]}
    assert (await httpx_post(here, header)).status_code == 400
    here.behind.triton.behaviour.errors = [InvalidRequest(f"the schema says {QUESTION}") for _ in range(2)]
    with pytest.raises(openai.BadRequestError):
        await here.ask("hello")
    with pytest.raises(grpc.aio.AioRpcError):
        await over_grpc(here, SECRET_KEY)
    assert len(await log.ended(7)) == 7
    for secret in (SECRET_KEY, "秘密", "secret question", "\\u79d8\\u5bc6", "this is a fake answer"):
        assert secret not in log.text
    assert "data:image" not in log.text


async def httpx_post(here: Scene, headers: dict[str, str]) -> httpx.Response:
    return await here.http.post("/v1/chat/completions", json={}, headers=headers)


async def over_grpc(here: Scene, key: str, timeout: float | None = None) -> None:
    turn = pb.Turn(role=pb.ROLE_USER, parts=[pb.Part(text=QUESTION)])
    metadata = (("authorization", f"Bearer {key}"),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{here.gateway.grpc_port}") as channel:
        call = VisualChatStub(channel).Chat(pb.ChatRequest(turns=[turn]), metadata=metadata, timeout=timeout)
        async for _ in call:
            pass
