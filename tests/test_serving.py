"""A server's life: health from its start to its drain, and a real process with a real SIGTERM."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from protos.qformer_pb2_grpc import QFormerStub
from tests.rpc_service import FULL_NAME, ask, health, running, until_refused
from ziya import rpc
from ziya.errors import Unavailable, ZiyaError
from ziya.rpc_server import ServerOptions

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("service", ["", FULL_NAME])
async def test_health_of_the_process_and_of_each_service(service: str) -> None:
    async with running() as server:
        assert await health(server.channel(), service) == SERVING


async def test_health_of_an_unknown_service_is_not_found() -> None:
    async with running() as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health(server.channel(), "ziya.visual.v1.Nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_waits_for_ready(free_port: int) -> None:
    ready, asked = asyncio.Event(), asyncio.Event()

    async def warm_up() -> None:
        asked.set()
        await ready.wait()

    async def enter() -> None:
        async with running(ServerOptions(port=free_port), warm_up) as server:
            assert await health(server.channel()) == SERVING

    entering = asyncio.create_task(enter())
    await asked.wait()
    channel = rpc.connect(f"127.0.0.1:{free_port}")
    assert await health(channel, FULL_NAME) == NOT_SERVING
    ready.set()
    await entering
    await channel.close(None)


async def test_what_ready_raises_stops_the_start(free_port: int) -> None:
    async def broken() -> None:
        raise FileNotFoundError("vision/model.safetensors")

    with pytest.raises(FileNotFoundError):
        async with running(ServerOptions(port=free_port), broken):
            pass
    async with running(ServerOptions(port=free_port)) as server:
        assert await health(server.channel()) == SERVING


async def test_a_port_in_use_is_named() -> None:
    async with running() as server:
        port = int(server.target.rpartition(":")[2])
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            async with running(ServerOptions(port=port)):
                pass


async def test_draining_refuses_the_new_and_finishes_the_old() -> None:
    async with running() as server:
        query, channel = server.query(), server.channel()
        old = asyncio.create_task(rpc.call(query, ask("wait")))
        await server.service.begun.wait()
        draining = asyncio.create_task(server.server.drain())
        with pytest.raises(Unavailable, match="test is stopping"):
            await until_refused(query)
        assert await health(channel, FULL_NAME) == NOT_SERVING
        assert not draining.done()
        server.service.released.set()
        assert (await old).tokens_key == "wait"
        await draining


async def test_a_drain_ends_when_its_time_is_over() -> None:
    async with running(ServerOptions(drain_seconds=0.05)) as server:
        old = asyncio.create_task(rpc.call(server.query(), ask("wait")))
        await server.service.begun.wait()
        await server.server.drain()
        assert not old.done()
        await server.server.stop()
        with pytest.raises(ZiyaError):
            await old


@asynccontextmanager
async def program() -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    """tests/rpc_service.py as a process, and the line that says where it listens."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.rpc_service", stdin=pipe, stdout=pipe, stderr=pipe
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(await process.stdout.readline())
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_call_in_flight_at_a_signal_ends_well_and_a_new_one_is_refused(number: signal.Signals) -> None:
    async with program() as (process, listening):
        assert process.stdout is not None
        assert process.stdin is not None
        assert listening["event"] == "listening"
        assert listening["service"] == "test"
        channel = rpc.connect(f"127.0.0.1:{listening['grpc']}")
        query = QFormerStub(channel).Query
        old = asyncio.create_task(rpc.call(query, ask("wait")))
        assert await process.stdout.readline() == b"begun\n"
        process.send_signal(number)
        with pytest.raises(Unavailable, match="stopping"):
            await until_refused(query)
        assert await health(channel) == NOT_SERVING
        process.stdin.write(b"go on\n")
        assert (await old).tokens_key == "wait"
        assert await process.wait() == 0
        await channel.close(None)


async def test_a_process_logs_json_with_the_request_id_and_serves_its_metrics() -> None:
    async with program() as (process, listening):
        assert process.stderr is not None
        channel = rpc.connect(f"127.0.0.1:{listening['grpc']}")
        metadata = (("x-request-id", "find-me"),)
        await QFormerStub(channel).Query(ask("x"), metadata=metadata)
        line = json.loads(await process.stderr.readline())
        assert line["request_id"] == "find-me"
        assert line["service"] == "test"
        assert line["level"] == "INFO"
        assert line["method"] == "QFormer/Query"
        assert line["code"] == "OK"
        page = await asyncio.to_thread(_get, f"http://127.0.0.1:{listening['metrics']}/metrics")
        assert 'ziya_test_rpc_total{code="OK",method="QFormer/Query"} 1.0' in page
        await channel.close(None)


def _get(url: str) -> str:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=20) as reply:
        return str(reply.read().decode())
