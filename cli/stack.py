"""A whole stack on this machine, from the first port to the last process stopped.

`running_stack` yields when the gateway says that everything can answer; leaving the body stops the gateway
first (it drains), then the stages, then Redis. `run` is the asyncio entry of the commands that use it:
Ctrl-C, SIGTERM and a closed terminal cancel the body, so there is one way out and it cleans up.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cli.ports import Ports
from cli.programs import Layout, check_checkpoint, plan
from cli.state import Addresses, StackFolder, claim
from cli.supervisor import supervise
from ziya import event_loop

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "ziya-tiny"
POLL_SECONDS = 0.05
REMARK_SECONDS = 20.0


@dataclass(frozen=True)
class Options:
    """What a person can choose. Port 0 means any free port; `state_dir` None means a default place."""

    checkpoint: Path = CHECKPOINT
    http_port: int = 8080
    grpc_port: int = 9000
    state_dir: Path | None = None


@asynccontextmanager
async def running_stack(options: Options, say: Callable[[str], None]) -> AsyncIterator[Addresses]:
    """Raises CommandError when something asked for cannot be had, GaveUp when a program does not stay up."""
    checkpoint = options.checkpoint.absolute()
    check_checkpoint(checkpoint)
    with closing(Ports()) as ports:
        layout = Layout.reserve(ports, options.http_port, options.grpc_port, say)
        with closing(claim(options.state_dir)) as folder:
            programs, addresses = plan(layout, checkpoint, folder, os.environ.get("ZIYA_REDIS_URL"))
            _introduce(addresses, folder, say)
            async with supervise(programs, folder.logs, say) as children:
                await _until_ready(addresses.url, say)
                for child in children:
                    child.proven = True
                folder.publish(addresses)
                yield addresses


def run(work: Coroutine[Any, Any, None]) -> bool:
    """Runs a command's coroutine; False when a signal ended it. A second signal cuts the clean-up short."""

    async def guarded() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, task.cancel)
        await work

    try:
        event_loop.run(guarded())
    except asyncio.CancelledError:
        return False
    return True


def _introduce(addresses: Addresses, folder: StackFolder, say: Callable[[str], None]) -> None:
    say(f"HTTP    {addresses.url} (OpenAI API, /metrics)")
    say(f"gRPC    {addresses.grpc} (ziya.visual.v1.VisualChat)")
    say(f"inside  vision {addresses.vision}, qformer {addresses.qformer}, Triton HTTP {addresses.triton_http}")
    say(f"        Triton gRPC {addresses.triton_grpc}, Redis {addresses.redis}")
    say(f"logs    {folder.logs}")


async def _until_ready(url: str, say: Callable[[str], None]) -> None:
    """Asks the gateway until it can answer; says now and then what is still missing."""
    waited, missing = 0.0, "the gateway"
    async with httpx.AsyncClient(base_url=url, timeout=5.0, trust_env=False) as client:
        while True:
            try:
                reply = await client.get("/readyz")
                if reply.is_success:
                    return
                stages = reply.json()["stages"]
                missing = ", ".join(name for name, state in stages.items() if state != "ok")
            except httpx.TransportError:
                pass  # not listening yet
            await asyncio.sleep(POLL_SECONDS)
            waited += POLL_SECONDS
            if waited >= REMARK_SECONDS:
                say(f"still waiting for {missing}")
                waited = 0.0
