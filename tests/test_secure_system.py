"""The whole system with everything locked: certificates on every connection, a user in Redis for every program.

Redis is the chart's, with its rules; the programs are those of `ziya up`, each with its own user.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from cli.ports import Ports
from cli.programs import Layout, plan
from cli.state import Addresses, claim
from cli.supervisor import Program, supervise
from services.llama import triton
from tests.certificates import Authority
from tests.chart_redis import ChartRedis
from tests.debian_redis import needs_redis_tls
from tests.helm import needs_helm
from ziya import rpc
from ziya.tls import TlsFolder

pytestmark = [
    needs_helm,
    needs_redis_tls,
    pytest.mark.xdist_group("stack"),
    pytest.mark.timeout(240),
]
USERS = {"vision": "vision", "qformer": "qformer", "triton": "llama", "gateway": "gateway"}
SECRET = "of-this-pod"


@dataclass(frozen=True)
class Secure:
    """A running system. `tls` is the folder that all its programs read."""

    addresses: Addresses
    metrics: int
    tls: Path
    authority: Authority
    redis: ChartRedis
    logs: Path

    async def ask(self, question: str, color: str) -> dict[str, Any]:
        """The whole reply. Raises AssertionError for anything but an answer."""
        file = BytesIO()
        Image.new("RGB", (64, 64), color).save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        body = {"model": "ziya-visual", "max_tokens": 8, "messages": [{"role": "user", "content": content}]}
        async with httpx.AsyncClient(base_url=self.addresses.url, timeout=60, trust_env=False) as client:
            reply = await client.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        assert found["choices"][0]["message"]["content"]
        return found

    async def inline(self) -> float:
        """How many requests did not go through Redis."""
        async with httpx.AsyncClient(timeout=20, trust_env=False) as client:
            page = (await client.get(f"http://127.0.0.1:{self.metrics}/metrics")).text
        lines = [line for line in page.splitlines() if line.startswith("ziya_gateway_inline")]
        return sum(float(line.rpartition(" ")[2]) for line in lines if "_created" not in line)


@pytest.fixture
async def secure(short_folder: Path, free_port: int, tiny_checkpoint: Path) -> AsyncIterator[Secure]:
    authority = Authority()
    redis = ChartRedis("tls", short_folder, free_port, authority)
    redis.start()
    try:
        async with running(redis, authority, short_folder / "tls-of-all", tiny_checkpoint) as system:
            yield system
    finally:
        redis.stop()


@asynccontextmanager
async def running(redis: ChartRedis, authority: Authority, tls: Path, checkpoint: Path) -> AsyncIterator[Secure]:
    authority.issue(tls)
    with closing(Ports()) as ports, closing(claim(redis.folder / "state")) as folder:
        layout = Layout.reserve(ports, 0, 0, print)
        programs, addresses = plan(layout, checkpoint, folder, "redis://127.0.0.1:1")
        locked = [_locked(program, redis, tls, layout) for program in programs]
        async with supervise(locked, folder.logs, print):
            await _until_ready(addresses)
            yield Secure(addresses, layout.grpc_metrics, tls, authority, redis, folder.logs)


def _locked(program: Program, redis: ChartRedis, tls: Path, layout: Layout) -> Program:
    own = {"ZIYA_TLS_DIR": str(tls), **redis.environment(USERS[program.name])}
    argv = list(program.argv)
    if program.name == "triton":
        options = triton.TritonOptions(tls, grpc_port=layout.triton_grpc, tls_dir=tls, http_secret=SECRET)
        made, _ = triton.command(options, {})
        argv += [one for one in made if one.partition("=")[0] not in {given.partition("=")[0] for given in argv}]
    return replace(program, argv=argv, env={**program.env, **own})


async def _until_ready(addresses: Addresses) -> None:
    async with httpx.AsyncClient(base_url=addresses.url, timeout=5, trust_env=False) as client:
        while True:
            try:
                if (await client.get("/readyz")).is_success:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            await asyncio.sleep(0.1)


async def test_everything_works_locked_and_goes_on_while_locks_are_changed(secure: Secure) -> None:
    for question in ("这是什么？", "What is this?"):
        await secure.ask(question, "red")
    assert await secure.inline() == 0
    await _strangers_learn_nothing(secure)
    answers = asyncio.create_task(_many(secure, 12))
    vision = secure.addresses.vision
    before = await asyncio.to_thread(_shown, vision)
    secure.authority.issue(secure.tls)
    secure.authority.issue(secure.redis.folder / "tls", common_name="redis")
    secure.authority.issue(secure.redis.folder / "client")
    for user in USERS.values():
        secure.redis.set_password(user, f"{user}-second")
    await answers
    assert await asyncio.to_thread(_shown, vision) != before
    await _poll(lambda: "passwords changed" in secure.redis.log and "certificate was read again" in secure.redis.log)
    await _poll(lambda: "the old passwords ended" in secure.redis.log)
    # A request in the moment of the change may have done without Redis; the next ones do not.
    detours = await secure.inline()
    for color in ("blue", "green"):
        await secure.ask("What is this?", color)
    assert await secure.inline() == detours
    assert "NOPERM" not in "".join(path.read_text("utf-8", "replace") for path in secure.logs.glob("*.log"))


async def _many(secure: Secure, count: int) -> None:
    for number in range(count):
        await secure.ask("What is this?", f"#{number * 20:02x}4080")


async def _strangers_learn_nothing(secure: Secure) -> None:
    for address in (secure.addresses.vision, secure.addresses.qformer, secure.addresses.triton_grpc):
        for folder, code in ((None, grpc.StatusCode.UNAVAILABLE), (TlsFolder(secure.tls), None)):
            channel = rpc.connect(address, tls=folder, keepalive=False)
            check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            if code is None:
                assert (await check).status == health_pb2.HealthCheckResponse.SERVING
            else:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await check
                assert caught.value.code() is code
            await channel.close()
    async with httpx.AsyncClient(base_url=f"http://{secure.addresses.triton_http}", trust_env=False) as client:
        for path in ("/v2/health/ready", "/v2/models/ziya_llama/ready"):
            assert (await client.get(path)).status_code == 200
        for path in ("/v2", "/v2/models/ziya_llama", "/v2/models/ziya_llama/config", "/v2/models/stats"):
            assert (await client.get(path)).status_code == 403
        assert (await client.post("/v2/models/ziya_llama/infer", json={"inputs": []})).status_code == 403
        assert (await client.get("/v2", headers={"x-ziya-pod": SECRET})).status_code == 200


def _shown(address: str) -> int:
    host, port = address.split(":")
    pem = ssl.get_server_certificate((host, int(port)), timeout=10)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


async def _poll(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.1)
