"""A call that a server has received, but not yet looked at, when it shuts down: another server gets it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import grpc
import pytest

from ziya import rpc
from ziya.errors import Unavailable

# Answers one call; then its loop stands still until its stdin says go on, and it shuts down.
SERVER = """
import asyncio, sys
import grpc

async def main():
    asked = asyncio.Event()

    async def answer(request, context):
        asked.set()
        return b"answered"

    method = grpc.unary_unary_rpc_method_handler(answer)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("any.Service", {"Ask": method}),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asked.wait()
    sys.stdin.readline()
    await server.stop(0.5)

asyncio.run(main())
"""


@pytest.fixture
def stalling() -> Iterator[tuple[subprocess.Popen[str], int]]:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert server.stdout is not None
    assert server.stdin is not None
    yield server, int(server.stdout.readline())
    server.kill()
    server.wait()
    server.stdout.close()
    server.stdin.close()


async def _asked_while_it_stalls(server: subprocess.Popen[str], target: str) -> list[bytes | BaseException]:
    """Ten calls, of which some or all have reached the server when it goes on and shuts down."""
    channel = rpc.connect(target)
    method = channel.unary_unary("/any.Service/Ask")
    calls = [asyncio.create_task(rpc.call(method, b"")) for _ in range(10)]
    await asyncio.sleep(0.5)
    assert server.stdin is not None
    server.stdin.write("go on\n")
    answers = await asyncio.gather(*calls, return_exceptions=True)
    await channel.close(None)
    return answers


async def _first_answer(port: int) -> bytes:
    async with rpc.connect(f"127.0.0.1:{port}") as channel:
        answer: bytes = await rpc.call(channel.unary_unary("/any.Service/Ask"), b"")
        return answer


async def test_another_server_gets_it(stalling: tuple[subprocess.Popen[str], int]) -> None:
    async def answer(request: bytes, context: object) -> bytes:
        return b"answered by another"

    method = grpc.unary_unary_rpc_method_handler(answer)
    other = grpc.aio.server()
    other.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("any.Service", {"Ask": method}),))
    other_port = other.add_insecure_port("127.0.0.1:0")
    await other.start()
    server, port = stalling
    assert await _first_answer(port) == b"answered"
    answers = await _asked_while_it_stalls(server, f"ipv4:///127.0.0.1:{port},127.0.0.1:{other_port}")
    await other.stop(0)
    assert set(answers) <= {b"answered", b"answered by another"}
    assert b"answered by another" in answers


async def test_where_there_is_no_other_it_is_unavailable(stalling: tuple[subprocess.Popen[str], int]) -> None:
    server, port = stalling
    assert await _first_answer(port) == b"answered"
    answers = await _asked_while_it_stalls(server, f"127.0.0.1:{port}")
    assert {type(answer) for answer in answers} <= {bytes, Unavailable}
    assert any(isinstance(answer, Unavailable) for answer in answers)
