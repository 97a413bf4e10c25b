"""What the processes of a run show one another inside a forward pass: contrastive losses compare all their samples.

The convention that makes many processes equal to one: each process computes the losses of *its own* rows of the
global micro-batch, against columns gathered from everyone; the loop divides by counts over all processes and **sums**
gradients over processes. A gathered tensor is then used by every process, so the gradient of a process's own slice is
the sum of what all of them send back for it; that sum is what `gather` does in the backward pass. (LAVIS gathers
without gradient, so that there each process misses the part of the gradient that its samples have as others' columns.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Peers:
    """This process among all. `group` has to carry tensors of the training device; None is the default group.

    Every process must make the same calls in the same order, with tensors of the same shape.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    def gather(self, x: Tensor) -> Tensor:
        """All processes' `x`, concatenated on dim 0 in rank order, with gradient (see the module)."""
        if self.size == 1:
            return x
        if not (x.requires_grad and torch.is_grad_enabled()):
            return self.gather_plain(x)
        gathered: Tensor = _Gather.apply(x, self)  # type: ignore[no-untyped-call]
        return gathered

    @torch.no_grad()
    def gather_plain(self, x: Tensor) -> Tensor:
        """As `gather`, without gradient; any dtype."""
        if self.size == 1:
            return x.detach()
        # No backend sends booleans.
        sent = (x.to(torch.uint8) if x.dtype == torch.bool else x.detach()).contiguous()
        every = sent.new_empty(self.size * len(x), *x.shape[1:])
        dist.all_gather_into_tensor(every, sent, group=self.group)
        return every.to(x.dtype)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        ctx.peers = peers
        return peers.gather_plain(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        peers: Peers = ctx.peers
        gradient = gradients[0].contiguous()
        mine = gradient.new_empty(len(gradient) // peers.size, *gradient.shape[1:])
        dist.reduce_scatter_tensor(mine, gradient, group=peers.group)
        return mine, None
