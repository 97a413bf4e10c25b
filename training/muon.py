"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al., 2024).

Each hidden weight matrix moves by the nearest semi-orthogonal matrix to its Nesterov momentum, found by five
Newton-Schulz iterations, scaled by 0.2 sqrt(larger side) so that its size is AdamW's and one rate serves both
(arXiv 2502.16982). `torch.optim.Muon` computes the iterations in bfloat16, which CPUs without bfloat16
instructions do ten times slower than float32; here they are done in float32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

# Coefficients of the quintic iteration, chosen by its author for a steep slope at zero.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
# So many numbers at once: of large matrices one is work enough for all cores, and copies of several would take memory.
_TOGETHER = 1 << 22


def orthogonal(matrices_KMN: Tensor) -> Tensor:
    """Matrices with the same singular vectors and all singular values near one (between about 0.7 and 1.2)."""
    work = matrices_KMN.float() if matrices_KMN.device.type == "cpu" else matrices_KMN.bfloat16()
    tall = work.shape[1] > work.shape[2]
    x = work.mT if tall else work
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return (x.mT if tall else x).to(matrices_KMN.dtype)


class Muon(torch.optim.Optimizer):
    """For matrices of hidden layers; embeddings, heads, norms and biases belong to AdamW."""

    def __init__(self, params: Iterable[Any], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients on the parameters; `closure` is not used."""
        for group in self.param_groups:
            for weights in _alike(group["params"]):
                self._move(weights, group)

    def _move(self, weights: Sequence[Tensor], group: dict[str, Any]) -> None:
        wanted_KMN = torch.stack([self._momentum(weight, group["momentum"]) for weight in weights])
        size = 0.2 * max(weights[0].shape) ** 0.5
        for weight, direction_MN in zip(weights, orthogonal(wanted_KMN), strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction_MN, alpha=-group["lr"] * size)

    def _momentum(self, weight: Tensor, momentum: float) -> Tensor:
        gradient = weight.grad
        assert gradient is not None
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        mean: Tensor = state["momentum"]
        mean.lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum)


def _alike(weights: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Those that have a gradient, by shape: small ones are made orthogonal together, each on a core of its own."""
    shapes: dict[torch.Size, list[Tensor]] = {}
    for weight in weights:
        if weight.grad is not None:
            shapes.setdefault(weight.shape, []).append(weight)
    for shape, same in shapes.items():
        count = max(1, _TOGETHER // shape.numel())
        yield from (same[start : start + count] for start in range(0, len(same), count))
