"""What is secret is told to nobody: no log, answer, metric or complaint of a real process holds a key or a password."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from protos.chat_pb2 import ChatRequest
from protos.chat_pb2_grpc import VisualChatStub
from services.gateway.settings import Settings
from tests.fakes import CONFIG
from tests.gateways import backend
from tests.redis_server import RedisServer
from ziya.content import ContentKeys

KEY, WRONG = "zk-1f6f0d3c-good-secret", "zk-77aa10-wrong-secret"
PASSWORD, SIGNATURE = "hunter2-of-redis", "sig-41d8cd98f00b204e"
SECRETS = (KEY, WRONG, PASSWORD, SIGNATURE, hashlib.sha256(KEY.encode()).hexdigest())


@asynccontextmanager
async def gateway(redis_url: str, folder: Path, **more: str) -> AsyncIterator[tuple[dict[str, Any], list[bytes]]]:
    """A gateway process that logs all it can: where it listens, and (when left) all it has written."""
    (folder / "config.json").write_text(CONFIG.to_json(), "utf-8")
    environment = os.environ | {
        "ZIYA_CHECKPOINT": str(folder),
        "ZIYA_REDIS_URL": redis_url,
        "ZIYA_LOG_LEVEL": "DEBUG",
        "ZIYA_REDIS_START_SECONDS": "0",
        "ZIYA_GATEWAY_HTTP_PORT": "0",
        "ZIYA_GATEWAY_GRPC_PORT": "0",
        "ZIYA_GATEWAY_RETRY_SECONDS": "0",
        "ZIYA_GATEWAY_API_KEYS": KEY,
        **more,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.gateway.app", env=environment, stdout=PIPE, stderr=PIPE
    )
    assert process.stdout is not None
    written: list[bytes] = []
    line = await process.stdout.readline()
    try:
        yield json.loads(line), written
    finally:
        process.terminate()
        written.extend([line, *await process.communicate()])


def silent(written: list[bytes]) -> None:
    text = b"\n".join(written).decode(errors="replace")
    for secret in SECRETS:
        assert secret not in text
        assert base64.b64encode(secret.encode()).decode() not in text


async def _ask(http: httpx.AsyncClient, key: str, content: Any, path: str = "/v1/chat/completions") -> httpx.Response:
    body = {"model": "ziya-visual", "messages": [{"role": "user", "content": content}]}
    return await http.post(path, json=body, headers={"Authorization": f"Bearer {key}"})


async def test_no_secret_is_told_whatever_goes_wrong(redis_server: RedisServer, tmp_path: Path) -> None:
    """Redis asks for a password, is then told a wrong one, and dies; keys are right, wrong and in the wrong place."""
    picture = f"https://127.0.0.1/a.png?signature={SIGNATURE}"
    content = [{"type": "image_url", "image_url": {"url": picture}}]
    # The server knows no user "nobody", and says so with an error to every connection.
    redis_url = redis_server.url.replace("unix://", f"unix://nobody:{PASSWORD}@")
    answers: list[bytes] = []
    async with backend(redis_server.url, ContentKeys(CONFIG)) as behind:
        triton = f"127.0.0.1:{behind.triton_server.port}"
        async with gateway(redis_url, tmp_path, ZIYA_GATEWAY_TRITON=triton) as (told, written):
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{told['http']}", timeout=30) as http:
                assert (await _ask(http, KEY, "hello")).status_code == 200
                replies = [
                    await _ask(http, WRONG, "hello"),
                    await _ask(http, KEY, content),
                    await _ask(http, KEY, [{"type": "image_id", "image_id": "0" * 64}]),
                    await _ask(http, KEY, "hello", f"/v1/nowhere?api_key={KEY}"),
                    await http.get("/v1/models", headers={"Authorization": KEY}),
                    await http.get("/readyz"),
                    await http.get("/metrics", headers={"Authorization": f"Bearer {KEY}"}),
                ]
                assert [reply.status_code for reply in replies[:3]] == [401, 400, 503]
                await behind.triton_server.kill()
                replies.append(await _ask(http, KEY, "hello"))
                assert replies[-1].status_code == 503
                answers = [reply.content for reply in replies]
            async with grpc.aio.insecure_channel(f"127.0.0.1:{told['grpc']}") as channel:
                for key in (KEY, WRONG):
                    call = VisualChatStub(channel).Chat(ChatRequest(), metadata=(("authorization", f"Bearer {key}"),))
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await call.read()
                    answers.append(str(caught.value).encode())
    assert b"call ended" in b"".join(written)
    assert any(b"Redis" in answer for answer in answers)
    silent([*written, *answers])


async def test_no_secret_is_told_by_a_process_that_cannot_start(tmp_path: Path) -> None:
    for wrong in (
        {"ZIYA_REDIS_URL": f"http://x:{PASSWORD}@redis"},
        {"ZIYA_GATEWAY_API_KEYS_FILE": str(tmp_path / "keys")},
        {"ZIYA_GATEWAY_API_KEY": KEY},
    ):
        environment = os.environ | {"ZIYA_CHECKPOINT": str(tmp_path), "ZIYA_GATEWAY_API_KEYS": KEY, **wrong}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.gateway.app", env=environment, stdout=PIPE, stderr=PIPE
        )
        written = await process.communicate()
        assert process.returncode == 2
        assert next(iter(wrong)).encode() in written[1]
        silent(list(written))


def test_settings_that_are_printed_hold_no_secret(tmp_path: Path) -> None:
    settings = Settings(checkpoint=tmp_path, redis_url=f"redis://u:{PASSWORD}@redis:6379/0", gateway_api_keys=KEY)
    silent([repr(settings).encode(), str(settings).encode()])
