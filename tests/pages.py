"""Fixtures of the chat page's tests: one gateway, one page process and one Chromium a module."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests import chromium
from tests.gateways import Scene, scene
from tests.redis_server import RedisServer

EXAMPLES = Path(__file__).parent.parent / "checkpoints" / "ziya-tiny" / "examples"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(shared_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """A gateway with examples, whose backends never come back late."""
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "examples").symlink_to(EXAMPLES)
    async with scene(shared_redis.url, folder, gateway_retry_seconds=0.2, gateway_page=True) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium.browser() as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def here(shared: Scene) -> AsyncIterator[Scene]:
    """The module's gateway, its backends as new."""
    triton = shared.behind.triton
    yield shared
    triton.pause = triton.late_error = None
    triton.pause_after = 1
    triton.behaviour.cancelled.clear()
    triton.behaviour.errors.clear()
