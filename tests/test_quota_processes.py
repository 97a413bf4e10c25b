"""One key before two gateways that are processes of their own: its limits hold over both, and outlive neither."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from services.gateway.keys.key_entry import digest_of
from tests.fakes import CONFIG, Gate
from tests.gateways import WORDS, Backend, backend, content_of, picture, shown, until
from ziya.content import ContentKeys


@dataclass
class Program:
    """A gateway's process, and a client with the key before it."""

    process: Process
    client: openai.AsyncOpenAI

    async def ask(self, content: Any) -> str:
        return await content_of(
            self.client.chat.completions.create(model="ziya-visual", messages=[{"role": "user", "content": content}])
        )

    async def refused(self, content: Any, words: str) -> openai.RateLimitError:
        with pytest.raises(openai.RateLimitError, match=words) as caught:
            await self.ask(content)
        return caught.value


@asynccontextmanager
async def gateways(
    behind: Backend, redis_url: str, folder: Path, limits: dict[str, int]
) -> AsyncIterator[list[Program]]:
    """Two of them; whatever happens, none is left."""
    (folder / "config.json").write_text(CONFIG.to_json(), "utf-8")
    (folder / "keys").write_text(json.dumps({"name": "both", "sha256": digest_of("secret"), **limits}), "utf-8")
    environment = os.environ | {
        "ZIYA_CHECKPOINT": str(folder),
        "ZIYA_REDIS_URL": redis_url,
        "ZIYA_GATEWAY_HTTP_PORT": "0",
        "ZIYA_GATEWAY_GRPC_PORT": "0",
        "ZIYA_GATEWAY_VISION": f"127.0.0.1:{behind.vision_port}",
        "ZIYA_GATEWAY_QFORMER": f"127.0.0.1:{behind.qformer_port}",
        "ZIYA_GATEWAY_TRITON": f"127.0.0.1:{behind.triton_server.port}",
        "ZIYA_GATEWAY_API_KEYS_FILE": str(folder / "keys"),
        "ZIYA_GATEWAY_QUOTA_SECONDS": "5",
        "ZIYA_GATEWAY_LEASE_SECONDS": "1",
    }
    programs: list[Program] = []
    try:
        for _ in range(2):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.gateway.app", env=environment, stdout=PIPE, stderr=DEVNULL
            )
            assert process.stdout is not None
            port = json.loads(await process.stdout.readline())["http"]
            client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="secret", max_retries=0)
            programs.append(Program(process, client))
        yield programs
    finally:
        for program in programs:
            await program.client.close()
            if program.process.returncode is None:
                program.process.kill()
            await program.process.wait()


async def test_a_rate_holds_over_two_processes(redis_url: str, tmp_path: Path) -> None:
    async with (
        backend(redis_url, ContentKeys(CONFIG)) as behind,
        gateways(behind, redis_url, tmp_path, {"images_per_minute": 4}) as both,
    ):
        for number in range(4):
            assert (await both[number % 2].ask(shown(picture()))).endswith(WORDS)
        for program in both:
            error = await program.refused(shown(picture()), "4 images a minute")
            assert 1 <= int(error.response.headers["retry-after"]) <= 15
            assert await program.ask("text costs no images") == WORDS


async def test_concurrency_holds_over_two_processes_and_ends_with_a_killed_one(redis_url: str, tmp_path: Path) -> None:
    async with (
        backend(redis_url, ContentKeys(CONFIG)) as behind,
        gateways(behind, redis_url, tmp_path, {"concurrent": 2}) as both,
    ):
        gate = behind.triton.behaviour.gate = Gate()
        held = [asyncio.create_task(program.ask("hold")) for program in both]
        await until(lambda: opened(behind, 2))
        for program in both:
            await program.refused("more", "2 requests in flight")
        # Longer than a lease lasts: both are renewed.
        await asyncio.sleep(1.5)
        await both[0].refused("more", "2 requests in flight")
        both[1].process.kill()
        await asyncio.wait([held[1]])
        assert isinstance(held[1].exception(), openai.APIConnectionError)

        async def room() -> bool:
            try:
                async with asyncio.timeout(0.5):
                    await both[0].ask("more")
            except openai.RateLimitError:
                return False
            except TimeoutError:  # it stands at the gate, where the killed one's request stood
                return True
            return True

        await until(room)
        gate.is_open.set()
        assert await held[0] == WORDS


async def opened(behind: Backend, number: int) -> bool:
    return behind.triton.opened >= number
