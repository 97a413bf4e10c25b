"""The processes of a run, and how a module is spread over them.

torchrun gives every process its rank; a run that was started without it is a world of one. DDP keeps whole
weights on each process, FSDP2 shards them (and gathers a layer when it is its turn). Sums over processes that
the loop needs go through one gloo group on the CPU, gradients through the device's own backend.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from training.errors import BadConfig
from training.recipe import Compute

T = TypeVar("T")

# DDP's reducer waits for gloo's threads when it is freed, and holds the interpreter lock meanwhile, which such a
# thread may itself wait for: then neither ends. So it is not freed; the process ends without it (training/run.py).
_NEVER_FREED: list[nn.Module] = []


@dataclass(frozen=True)
class World:
    """This process among all. `host` is the gloo group for sums on the CPU, `peers` carries what losses compare."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    host: dist.ProcessGroup | None = None
    peers: dist.ProcessGroup | None = None

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over all processes, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.host)
        return [float(value) for value in total]

    def gather(self, mine: list[T]) -> list[T]:
        """Everyone's values in rank order; they have to be plain data."""
        every: list[list[T]] = [mine] * self.size
        if self.size > 1:
            dist.all_gather_object(every, mine, group=self.host)
        return [one for theirs in every for one in theirs]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self.host)


@contextmanager
def join(timeout_seconds: float) -> Iterator[World]:
    """Joins the group that torchrun's environment describes; leaves it at the end."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size == 1:
        yield World(device=device)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
    try:
        yield World(rank, size, device, dist.new_group(backend="gloo"), dist.new_group())
    finally:
        dist.destroy_process_group()


def spread(module: nn.Module, blocks: Sequence[nn.Module], how: Compute, world: World) -> nn.Module:
    """`module` as the recipe wants it run. `blocks` are its transformer layers: the units of sharding and recompute."""
    if how.checkpoint_activations:
        for block in blocks:
            # On the instance and not by a wrapper module, which would rename every parameter.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if how.compile:
        for block in blocks:
            block.compile(dynamic=True)
    if how.strategy == "fsdp":
        return _shard(module, blocks, how, world)
    if world.size == 1:
        return module
    _NEVER_FREED.append(DistributedDataParallel(module))
    return _NEVER_FREED[-1]


def _shard(module: nn.Module, blocks: Sequence[nn.Module], how: Compute, world: World) -> nn.Module:
    if world.size == 1:
        raise BadConfig("strategy fsdp needs more than one process; use ddp")
    dtype = torch.bfloat16 if how.precision == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mp_policy=policy)
    fully_shard(module, mp_policy=policy)
    return module


@contextmanager
def accumulating(module: nn.Module, *, last: bool) -> Iterator[None]:
    """Gradients are exchanged with the other processes only after the last micro-batch of a step."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    with module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext():
        yield
