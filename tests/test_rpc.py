"""What every service gets from `ziya.rpc`, over real sockets."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos.qformer_pb2 import EmbedTextRequest, QueryReply
from protos.qformer_pb2_grpc import QFormerStub
from tests.rpc_service import FULL_NAME, ask, health, running, until_refused
from ziya import rpc, telemetry
from ziya.errors import (
    BusUnavailable,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    Overloaded,
    Unavailable,
    Unimplemented,
    ZiyaError,
)
from ziya.rpc_server import ServerOptions

QUERY = {"method": "QFormer/Query"}


async def test_reflection_lists_the_services_and_gives_their_files() -> None:
    async with running() as server:
        info = reflection_pb2_grpc.ServerReflectionStub(server.channel()).ServerReflectionInfo
        request = reflection_pb2.ServerReflectionRequest
        call = info(iter([request(list_services=""), request(file_containing_symbol=FULL_NAME)]))
        listed, found = [reply async for reply in call]
    names = {service.name for service in listed.list_services_response.service}
    assert names == {FULL_NAME, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert any(b"QueryRequest" in data for data in found.file_descriptor_response.file_descriptor_proto)


async def test_a_defect_tells_the_caller_nothing_but_where_to_look(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as server:
        with pytest.raises(Internal) as caught:
            await rpc.call(server.query(), ask("break"))
    assert "secret detail" not in str(caught.value)
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "secret detail" in str(record.exc_info)


async def test_an_unknown_method_is_unimplemented() -> None:
    async with running() as server:
        with pytest.raises(Unimplemented):
            await rpc.call(QFormerStub(server.channel()).EmbedText, EmbedTextRequest(text="x"))


async def test_nobody_there_is_unavailable(free_port: int) -> None:
    channel = rpc.connect(f"127.0.0.1:{free_port}")
    with pytest.raises(Unavailable):
        await rpc.call(QFormerStub(channel).Query, ask("x"))
    await channel.close(None)


async def test_a_channel_finds_a_service_that_comes_back() -> None:
    async with running() as server:
        port = int(server.target.rpartition(":")[2])
        channel = rpc.connect(server.target)
        query = QFormerStub(channel).Query
        await rpc.call(query, ask("x"))
    with pytest.raises(Unavailable):
        await rpc.call(query, ask("x"))
    async with running(ServerOptions(port=port)), asyncio.timeout(20):
        while (reply := await _try(query)) is None:
            pass
        assert reply.tokens_key == "again"
    await channel.close(None)


@pytest.mark.parametrize(
    ("error", "times"), [("Unavailable", 3), ("BusUnavailable", 1), ("Overloaded", 1), ("InvalidImage", 1)]
)
async def test_only_an_unavailable_stage_is_asked_again(error: str, times: int) -> None:
    async with running() as server:
        with pytest.raises(ZiyaError):
            await rpc.call(server.query(), ask(f"raise {error}"))
        assert server.metrics.registry.get_sample_value("ziya_test_rpc_seconds_count", QUERY) == times


async def test_the_request_id_travels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    token = telemetry.request_id.set("my-request-1")
    try:
        async with running() as server:
            call = server.query()(ask("raise InvalidImage"), metadata=(("x-request-id", "my-request-1"),))
            with pytest.raises(grpc.aio.AioRpcError):
                await call
            assert ("x-request-id", "my-request-1") in tuple(await call.trailing_metadata())
            await rpc.call(server.query(), ask("x"))
            assert server.service.request_ids == ["my-request-1", "my-request-1"]
    finally:
        telemetry.request_id.reset(token)


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 65, "new-line%0a", "<script>"])
async def test_an_id_that_may_not_stand_in_a_log_is_replaced(given: str | None) -> None:
    async with running() as server:
        call = server.query()(ask("x"), metadata=() if given is None else (("x-request-id", given),))
        await call
        (used,) = server.service.request_ids
        assert used != given
        assert len(bytes.fromhex(used)) == 16
        assert ("x-request-id", used) in tuple(await call.trailing_metadata())


async def test_a_message_over_the_limit_is_an_invalid_request() -> None:
    async with running(ServerOptions(max_message_bytes=1 << 16)) as server:
        with pytest.raises(InvalidRequest, match="message limit"):
            await rpc.call(server.query(), ask("x" * (1 << 17)))
        narrow = QFormerStub(server.channel(max_message_bytes=1 << 10)).Query
        with pytest.raises(InvalidRequest, match="message limit"):
            await rpc.call(narrow, ask("x" * (1 << 11)))
        assert (await rpc.call(server.query(), ask("x" * 1000))).tokens_key == "x" * 1000


async def test_more_calls_than_allowed_are_refused() -> None:
    async with running(ServerOptions(max_concurrent=2)) as server:
        query = server.query()
        waiting = [asyncio.create_task(rpc.call(query, ask("wait"))) for _ in range(2)]
        await server.service.begun.wait()
        with pytest.raises(Overloaded, match="2 calls in flight"):
            await until_refused(query)
        assert await health(server.channel()) == health_pb2.HealthCheckResponse.SERVING
        server.service.released.set()
        await asyncio.gather(*waiting)
        await rpc.call(query, ask("x"))


async def test_a_deadline_ends_the_call_and_its_work() -> None:
    async with running() as server:
        with pytest.raises(DeadlineExceeded):
            await rpc.call(server.query(), ask("wait"), deadline=time.time() + 0.2)
        await server.service.cancelled.wait()


async def test_a_deadline_in_the_past_is_not_even_sent() -> None:
    async with running() as server:
        with pytest.raises(DeadlineExceeded):
            await rpc.call(server.query(), ask("x"), deadline=time.time() - 1)
        assert server.service.request_ids == []


async def test_the_service_sees_the_callers_deadline() -> None:
    async with running() as server:
        deadline = time.time() + 30
        await rpc.call(server.query(), ask("x"), deadline=deadline)
        await rpc.call(server.query(), ask("x"))
        with_one, without = server.service.deadlines
        assert with_one == pytest.approx(deadline, abs=5)
        assert without == pytest.approx(time.time() + 60, abs=5)


async def test_a_cancelled_caller_ends_the_work() -> None:
    async with running() as server:
        calling = asyncio.create_task(rpc.call(server.query(), ask("wait")))
        await server.service.begun.wait()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await server.service.cancelled.wait()


async def test_calls_are_counted_by_method_and_status() -> None:
    async with running() as server:
        await rpc.call(server.query(), ask("x"))
        with pytest.raises(BusUnavailable):
            await rpc.call(server.query(), ask("raise BusUnavailable"))
        with pytest.raises(Internal):
            await rpc.call(server.query(), ask("break"))
        await health(server.channel())
        get = server.metrics.registry.get_sample_value
        assert get("ziya_test_rpc_total", QUERY | {"code": "OK"}) == 1
        assert get("ziya_test_rpc_total", QUERY | {"code": "UNAVAILABLE"}) == 1
        assert get("ziya_test_rpc_total", QUERY | {"code": "INTERNAL"}) == 1
        assert get("ziya_test_rpc_seconds_count", QUERY) == 3
        assert get("ziya_test_rpc_in_flight") == 0


async def _try(query: Any) -> QueryReply | None:
    try:
        reply: QueryReply = await rpc.call(query, ask("again"))
    except Unavailable:
        return None
    return reply
