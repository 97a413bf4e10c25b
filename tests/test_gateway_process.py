"""The gateway as a process: what it prints, how it stops, and which settings it refuses."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import openai

from tests.fakes import CONFIG, Gate
from tests.gateways import WORDS, backend, until, words_of
from ziya.content import ContentKeys


async def test_process_drains_before_it_stops(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(CONFIG.to_json(), "utf-8")
    async with backend(redis_url, ContentKeys(CONFIG)) as behind:
        environment = os.environ | {
            "ZIYA_CHECKPOINT": str(tmp_path),
            "ZIYA_REDIS_URL": redis_url,
            "ZIYA_GATEWAY_HTTP_PORT": "0",
            "ZIYA_GATEWAY_GRPC_PORT": "0",
            "ZIYA_GATEWAY_TRITON": f"127.0.0.1:{behind.triton_server.port}",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.gateway.app", env=environment, stdout=PIPE, stderr=PIPE
        )
        assert process.stdout is not None
        told = json.loads(await process.stdout.readline())
        assert (told["event"], told["service"]) == ("listening", "gateway")
        pause = behind.triton.pause = Gate()
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{told['http']}/v1", api_key="none", max_retries=0
        ) as client:
            ask = functools.partial(
                client.chat.completions.create, model="ziya-visual", messages=[{"role": "user", "content": "hello"}]
            )
            question = asyncio.create_task(words_of(ask(stream=True)))
            await pause.reached.wait()
            process.send_signal(signal.SIGTERM)
            behind.triton.pause = None
            await until(lambda: refused(ask()))
            pause.is_open.set()
            assert await question == WORDS
        _, log = await process.communicate()
        assert process.returncode == 0, log.decode()
        ended = [line for line in map(json.loads, log.splitlines()) if line["msg"] == "request ended"]
        assert {"ok", "Unavailable"} <= {line["outcome"] for line in ended}
        assert all(line["request_id"] for line in ended)


async def refused(question: Awaitable[Any]) -> bool:
    try:
        await question
    except openai.APIError:
        return True
    return False


async def test_process_names_a_wrong_setting(tmp_path: Path) -> None:
    environment = os.environ | {"ZIYA_CHECKPOINT": str(tmp_path), "ZIYA_GATEWAY_HTTPPORT": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.gateway.app", env=environment, stdout=PIPE, stderr=PIPE
    )
    _, log = await process.communicate()
    assert process.returncode == 2
    assert b"ZIYA_GATEWAY_HTTPPORT" in log
