"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al., 2024).

Each hidden weight matrix moves by the nearest semi-orthogonal matrix to its Nesterov momentum, found by five
Newton-Schulz iterations, scaled by 0.2 sqrt(larger side) so that its size is AdamW's and one rate serves both
(arXiv 2502.16982). `torch.optim.Muon` computes the iterations in bfloat16, which CPUs without bfloat16
instructions do ten times slower than float32; here they are done in float32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Coefficients of the quintic iteration, chosen by its author for a steep slope at zero.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


def orthogonal(matrix_MN: Tensor) -> Tensor:
    """A matrix with the same singular vectors and all singular values near one (between about 0.7 and 1.2)."""
    work = matrix_MN.float() if matrix_MN.device.type == "cpu" else matrix_MN.bfloat16()
    tall = work.shape[0] > work.shape[1]
    x = work.T if tall else work
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return (x.T if tall else x).to(matrix_MN.dtype)


class Muon(torch.optim.Optimizer):
    """For matrices of hidden layers; embeddings, heads, norms and biases belong to AdamW."""

    def __init__(self, params: Iterable[Any], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients on the parameters; `closure` is not used."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, group)

    def _move(self, weight: Tensor, group: dict[str, Any]) -> None:
        gradient = weight.grad
        assert gradient is not None
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        mean: Tensor = state["momentum"]
        mean.lerp_(gradient, 1 - group["momentum"])
        direction = orthogonal(gradient.lerp(mean, group["momentum"]))
        size = 0.2 * max(weight.shape) ** 0.5
        weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"] * size)
