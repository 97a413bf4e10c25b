"""Whole weights for a while: what is not a training step cannot run on shards.

FSDP gathers a layer when it is its turn, in every process at the same time. An evaluation calls parts of the model by
themselves, and in each process as often as its share of the data takes: weights are gathered before, sharded after.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Every process enters and leaves it together. Without FSDP it does nothing. Weights must not be changed within."""
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        # Else a layer would be sharded again behind its first use.
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            # FSDP's own default: the outermost keeps its weights for the backward pass, which comes at once.
            part.set_reshard_after_forward(part is not module, recurse=False)
