"""More than there is room for, through both faces: each is answered or politely refused, and nobody is starved."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from google.rpc import error_details_pb2, status_pb2

from protos import chat_pb2 as pb
from protos.chat_pb2_grpc import VisualChatStub
from services.gateway.keys.key_entry import digest_of
from tests.fakes import Gate
from tests.gateways import WORDS, Scene, content_of, metric_counts, metric_is, picture, scene, shown, until, words_of

DEADLINE = 20.0


def keys(folder: Path, **priorities: str) -> Path:
    file = folder / "keys"
    lines = [
        json.dumps({"name": name, "sha256": digest_of(name), "priority": priority})
        for name, priority in priorities.items()
    ]
    file.write_text("\n".join(lines), "utf-8")
    return file


async def asked(here: Scene, key: str, content: Any, **headers: str) -> str:
    """How a request ended: its error's code, or the answer."""
    client = here.client.with_options(api_key=key)
    messages: Any = [{"role": "user", "content": content}]
    try:
        answer = client.chat.completions.create(model="ziya-visual", messages=messages, extra_headers=headers)
        return await content_of(answer)
    except openai.APIStatusError as error:
        polite = error.status_code != 429 or int(error.response.headers["retry-after"]) >= 1
        return str(error.code) if polite else "without Retry-After"


async def test_two_hundred_images_at_once_are_answered_or_politely_refused(redis_url: str, tmp_path: Path) -> None:
    settings = {"gateway_max_in_flight": 24, "gateway_max_images_in_flight": 16, "gateway_max_waiting": 40}
    file = keys(tmp_path, batch="low", people="normal", desk="high")
    async with scene(redis_url, tmp_path, gateway_api_keys_file=file, **settings) as here:
        names = ["batch", "people", "people", "desk"]
        headers = {"X-Request-Timeout": str(DEADLINE)}
        content = [shown(picture("red", 16 + number)) for number in range(50)]
        started = time.monotonic()
        outcomes = await asyncio.gather(
            *(asked(here, names[number % 4], content[number % 50], **headers) for number in range(200))
        )
        assert time.monotonic() - started < DEADLINE
        answered = [one for one in outcomes if one.endswith(WORDS)]
        assert Counter(one for one in outcomes if not one.endswith(WORDS)).keys() <= {"overloaded"}
        assert len(outcomes) == 200
        assert len(answered) >= 24
        # Every one is accounted for, at the gateway and behind it, and no room is left taken.
        for name in ("in_flight", "images_in_flight", "tokens_in_flight", "waiting"):
            assert await inside(here, f"ziya_gateway_{name}") == 0, name
        assert await inside(here, "ziya_gateway_requests_total") == 200
        assert await inside(here, "ziya_gateway_shed_total") == 200 - len(answered)
        assert len(here.behind.triton.asked) == len(answered)


async def inside(here: Scene, name: str) -> float:
    """The sum of a metric's samples, by the port that needs no key."""
    page = (await here.http.get(f"http://127.0.0.1:{here.gateway.metrics_port}/metrics")).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.split("{")[0].split(" ")[0] == name)


async def test_low_priority_gives_way_through_the_api(redis_url: str, tmp_path: Path) -> None:
    settings = {"gateway_max_in_flight": 1, "gateway_max_waiting": 2, "gateway_max_wait_seconds": 30}
    file = keys(tmp_path, batch="low", desk="high")
    async with scene(redis_url, tmp_path, gateway_api_keys_file=file, **settings) as here:
        gate = here.behind.triton.behaviour.gate = Gate()
        first = asyncio.create_task(asked(here, "desk", "first"))
        await gate.reached.wait()
        batch = [asyncio.create_task(asked(here, "batch", "batch")) for _ in range(2)]
        await until(lambda: waiting_is(here, 2))
        desk = [asyncio.create_task(asked(here, "desk", "desk")) for _ in range(2)]
        assert await asyncio.gather(*batch) == ["overloaded"] * 2
        # The key may ask with less than its own.
        assert await asked(here, "desk", "modest", **{"X-Priority": "low"}) == "overloaded"
        gate.is_open.set()
        assert await asyncio.gather(first, *desk) == [WORDS] * 3


async def waiting_is(here: Scene, number: int) -> bool:
    return await inside(here, "ziya_gateway_waiting") == number


async def test_a_greedy_key_does_not_starve_another_through_the_api(redis_url: str, tmp_path: Path) -> None:
    settings = {"gateway_max_in_flight": 2, "gateway_max_waiting": 8, "gateway_max_wait_seconds": 30}
    file = keys(tmp_path, greedy="normal", modest="normal")
    async with scene(redis_url, tmp_path, gateway_api_keys_file=file, **settings) as here:
        over = asyncio.Event()

        async def flood() -> None:
            while not over.is_set():
                await asked(here, "greedy", "more")

        flooding = [asyncio.create_task(flood()) for _ in range(20)]
        await until(lambda: metric_is_above(here, "ziya_gateway_shed_total", 20))
        assert [await asked(here, "modest", "please") for _ in range(10)] == [WORDS] * 10
        over.set()
        await asyncio.gather(*flooding)


async def metric_is_above(here: Scene, name: str, number: float) -> bool:
    return await inside(here, name) > number


async def test_slow_bodies_of_one_key_do_not_keep_another_out(redis_url: str, tmp_path: Path) -> None:
    settings = {"gateway_max_in_flight": 3, "gateway_max_waiting": 0}
    file = keys(tmp_path, greedy="normal", modest="normal")
    async with scene(redis_url, tmp_path, gateway_api_keys_file=file, **settings) as here, AsyncExitStack() as stack:
        readers = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", here.gateway.http_port)
            stack.callback(writer.close)
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer greedy\r\n"
            writer.write(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
            readers.append(reader)
        await until(lambda: in_flight_is(here, 3))
        assert await asked(here, "greedy", "more") == "overloaded"
        assert await asked(here, "modest", "please") == WORDS
        assert (await readers[0].readline()).startswith(b"HTTP/1.1 429")
        await until(lambda: in_flight_is(here, 2))
        assert await inside(here, "ziya_gateway_shed_total") == 2


async def in_flight_is(here: Scene, number: int) -> bool:
    return await inside(here, "ziya_gateway_in_flight") == number


async def test_what_expired_while_it_waited_never_reaches_a_stage(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, gateway_max_in_flight=1, gateway_max_wait_seconds=30) as here:
        gate = here.behind.triton.behaviour.gate = Gate()
        first = asyncio.create_task(here.ask("first"))
        await gate.reached.wait()
        assert await asked(here, "none", shown(picture()), **{"X-Request-Timeout": "0.2"}) == "deadline_exceeded"
        leaves = asyncio.create_task(asked(here, "none", shown(picture())))
        await until(lambda: metric_is(here, "ziya_gateway_waiting", 1))
        leaves.cancel()
        await until(lambda: metric_is(here, "ziya_gateway_waiting", 0))
        gate.is_open.set()
        assert await content_of(first) == WORDS
        assert here.behind.triton.opened == 1
        assert here.behind.vision.requests == []
        assert await metric_is(here, "ziya_gateway_shed_total", 2)


async def test_images_make_room_for_others_when_the_text_begins(redis_url: str, tmp_path: Path) -> None:
    settings = {"gateway_max_images_in_flight": 1, "gateway_max_waiting": 0}
    async with scene(redis_url, tmp_path, **settings) as here:
        gate = here.behind.triton.behaviour.gate = Gate()
        first = asyncio.create_task(here.ask(shown(picture()), stream=True))
        await gate.reached.wait()
        assert await asked(here, "none", shown(picture())) == "overloaded"
        here.behind.triton.pause = Gate()
        gate.is_open.set()
        await here.behind.triton.pause.reached.wait()
        await until(lambda: metric_is(here, "ziya_gateway_images_in_flight", 0))
        second = asyncio.create_task(asked(here, "none", shown(picture())))
        await until(lambda: opened(here, 2))
        here.behind.triton.pause.is_open.set()
        assert (await words_of(first)).endswith(WORDS)
        assert (await second).endswith(WORDS)


async def opened(here: Scene, number: int) -> bool:
    return here.behind.triton.opened >= number


async def test_bodies_are_bounded_together(redis_url: str, tmp_path: Path) -> None:
    settings = {"gateway_max_body_bytes": 300_000, "gateway_max_body_bytes_in_flight": 500_000}
    async with scene(redis_url, tmp_path, **settings) as here:
        gate = here.behind.triton.behaviour.gate = Gate()
        large = "x" * 290_000
        first = asyncio.create_task(asked(here, "none", large))
        await gate.reached.wait()
        assert await asked(here, "none", large) == "overloaded"
        assert await inside(here, "ziya_gateway_body_bytes_in_flight") < 300_000
        second = asyncio.create_task(asked(here, "none", "small"))
        gate.is_open.set()
        assert await asyncio.gather(first, second) == [WORDS] * 2
        assert await inside(here, "ziya_gateway_body_bytes_in_flight") == 0
        assert await asked(here, "none", large) == WORDS


async def test_grpc_says_when_to_ask_again(redis_url: str, tmp_path: Path) -> None:
    async with (
        scene(redis_url, tmp_path, gateway_max_in_flight=1, gateway_max_waiting=0) as here,
        grpc.aio.insecure_channel(f"127.0.0.1:{here.gateway.grpc_port}") as channel,
    ):
        gate = here.behind.triton.behaviour.gate = Gate()
        request = pb.ChatRequest(turns=[pb.Turn(role=pb.ROLE_USER, parts=[pb.Part(text="hello")])])
        first = asyncio.create_task(VisualChatStub(channel).Chat(request).read())
        await gate.reached.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await VisualChatStub(channel).Chat(request).read()
        error = caught.value
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailing = dict(error.trailing_metadata() or ())
        details = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
        assert (details.code, details.message) == (error.code().value[0], error.details())
        info = error_details_pb2.RetryInfo()
        assert details.details[0].Unpack(info)
        assert info.retry_delay.ToMilliseconds() == 1000 * float(trailing["retry-after"]) == 1000
        gate.is_open.set()
        assert (await first).text


async def test_a_wait_is_measured(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, gateway_max_in_flight=1) as here:
        assert await asyncio.gather(*(content_of(here.ask("hello")) for _ in range(5))) == [WORDS] * 5
        assert await metric_counts(here, "ziya_gateway_wait_seconds_sum")
        assert await here.metric("ziya_gateway_wait_seconds_count") == 5
