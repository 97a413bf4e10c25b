"""What tests share: a real Redis, free ports, a tiny random checkpoint. Nothing here is mocked."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from tests.redis_server import RedisServer
from ziya.bus import Bus


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A private folder with a short path: the name of a Unix socket has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="zv"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def redis_server(short_folder: Path) -> Iterator[RedisServer]:
    """A running Redis of the test's own, that it may kill."""
    server = RedisServer(short_folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    folder = Path(tempfile.mkdtemp(prefix="zv"))
    server = RedisServer(folder)
    server.start()
    yield server
    server.kill()
    shutil.rmtree(folder)


@pytest.fixture
def redis_url(shared_redis: RedisServer) -> str:
    """An empty Redis; one server a pytest process, so that parallel processes do not meet."""
    with redis.Redis.from_url(shared_redis.url) as client:
        client.flushall()
    return shared_redis.url


@pytest.fixture
async def bus(redis_url: str) -> AsyncIterator[Bus]:
    bus = Bus(redis_url)
    yield bus
    await bus.close()


@pytest.fixture
def free_port() -> int:
    """A loopback TCP port that nothing listens on. Where a program takes port 0, that is the better way."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint with random weights, whose Q-Former does not read the instruction. Do not write to it."""
    # Here and not at the top: tests without a checkpoint need not wait for torch and transformers.
    from tests.tiny import build_checkpoint  # noqa: PLC0415

    return build_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def tiny_reading_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_checkpoint`, but its Q-Former reads the instruction and has the retrieval heads."""
    from tests.tiny import build_checkpoint  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("checkpoint") / "reading"
    return build_checkpoint(folder, reads_instruction=True, retrieval=True)
