"""gRPC's alarm bell, a byte an event, is emptied in one turn of our loops; with the pinned grpcio we know the bell."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from services.gateway.app import Loop
from ziya.event_loop import EventLoop, PromptGrpc

CALLS = 200  # fewer than the bell holds bytes
MOST_TURNS = 20  # until calls have begun


class PollerCompletionQueue:
    """A queue that rings as gRPC's does, and counts how often it is answered."""

    def __init__(self) -> None:
        self.bell, self._ringer = socket.socketpair()
        self.bell.setblocking(False)
        self.events: list[int] = []
        self.handled: list[int] = []
        self.turns = 0

    def put(self, event: int) -> None:
        self.events.append(event)
        self._ringer.send(b"\0")

    def handle(self, _loop: object) -> None:
        self.bell.recv(1)
        self.turns += 1
        self.handled += self.events
        self.events.clear()

    def close(self) -> None:
        self.bell.close()
        self._ringer.close()


@pytest.mark.parametrize("loop", [EventLoop, Loop])
def test_one_turn_takes_all_events(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    queue = PollerCompletionQueue()

    async def two_bursts() -> None:
        running = asyncio.get_running_loop()
        running.add_reader(queue.bell, queue.handle, running)
        for burst in (range(100), range(100, 101)):
            for event in burst:
                queue.put(event)
            while len(queue.handled) <= burst[-1]:
                await asyncio.sleep(0)
        running.remove_reader(queue.bell)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(two_bursts())
    assert queue.handled == list(range(101))
    assert queue.turns == 2
    with pytest.raises(BlockingIOError):
        queue.bell.recv(1)
    queue.close()


@pytest.mark.parametrize("loop", [EventLoop, Loop])
def test_other_readers_are_left_alone(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    ours, theirs = socket.socketpair()
    read: list[bytes] = []

    async def listen() -> None:
        running = asyncio.get_running_loop()
        running.add_reader(ours, lambda: read.append(ours.recv(2)))
        theirs.send(b"abcdef")
        while sum(map(len, read)) < 6:
            await asyncio.sleep(0)
        running.remove_reader(ours)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(listen())
    assert read == [b"ab", b"cd", b"ef"]
    ours.close()
    theirs.close()


@pytest.mark.parametrize("own", [asyncio.SelectorEventLoop, uvloop.Loop])
def test_a_loop_that_was_busy_takes_all_events_of_the_pinned_grpc(own: type[Any]) -> None:
    taken: list[tuple[int, int]] = []

    class Counting(own):  # type: ignore[misc]
        def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
            def counted(*given: Any) -> None:
                before = _rung(fd)
                callback(*given)
                taken.append((before, _rung(fd)))

            bells.append(fd)
            super().add_reader(fd, counted, *args)

    class Prompt(PromptGrpc, Counting):
        pass

    bells: list[Any] = []

    async def flood() -> list[int]:
        server, servicer = grpc.aio.server(), health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch
            calls = [watch(health_pb2.HealthCheckRequest()) for _ in range(CALLS)]
            for _ in range(MOST_TURNS):
                await asyncio.sleep(0)
                time.sleep(0.2)  # noqa: ASYNC251 (the loop is busy, and events come)
                if _rung(bells[0]) >= CALLS // 2:
                    break
            answers = [await call.read() for call in calls]
            for call in calls:
                call.cancel()
        await server.stop(None)
        return [answer.status for answer in answers]

    with asyncio.Runner(loop_factory=Prompt) as runner:
        statuses = runner.run(flood())
    assert statuses == [health_pb2.HealthCheckResponse.SERVING] * CALLS
    assert any(before >= CALLS // 2 and after < before // 2 for before, after in taken)


def _rung(bell: socket.socket) -> int:
    try:
        return len(bell.recv(4096, socket.MSG_PEEK))
    except BlockingIOError:
        return 0
