"""AdamW over float32 copies of bfloat16 weights.

Small CPUs multiply bfloat16 matrices three times as fast as float32, but bfloat16 cannot hold small
updates. So the modules compute in bfloat16, the optimizer owns float32 masters, and after each step the
masters are rounded back. A running mean of the masters is what gets evaluated and shipped.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from training.tiny.recipe import Optimizer


class MasterAdamW:
    """One optimizer for all trainable weights of `module`; those whose names begin with a key of `rates` learn at
    that share of the rate."""

    def __init__(self, module: nn.Module, how: Optimizer, rates: Mapping[str, float] | None = None) -> None:
        self.how = how
        self.step_number = 0
        named = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self.weights: list[Tensor] = list(named.values())
        self.masters = [weight.detach().float().clone() for weight in self.weights]
        self.means = [master.clone() for master in self.masters]
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, master in zip(named, self.masters, strict=True):
            decay = how.weight_decay if master.ndim > 1 else 0.0
            groups.setdefault((_share(name, rates or {}), decay), []).append(master)
        settings = [
            {"params": those, "share": share, "weight_decay": decay} for (share, decay), those in groups.items()
        ]
        self.adam = torch.optim.AdamW(settings, lr=how.peak_lr, betas=(0.9, 0.98), foreach=True)

    def lr(self) -> float:
        how, step = self.how, self.step_number
        if step < how.warmup:
            return how.peak_lr * (step + 1) / how.warmup
        done = min(1.0, (step - how.warmup) / max(1, how.steps - how.warmup))
        share = how.final_lr_share + (1 - how.final_lr_share) * 0.5 * (1 + math.cos(math.pi * done))
        return how.peak_lr * share

    @torch.no_grad()
    def step(self) -> None:
        """Apply the gradients that `backward` left on the modules, and clear them."""
        for weight, master in zip(self.weights, self.masters, strict=True):
            master.grad = torch.zeros_like(master) if weight.grad is None else weight.grad.float()
            weight.grad = None
        nn.utils.clip_grad_norm_(self.masters, self.how.clip, foreach=True)
        for group in self.adam.param_groups:
            group["lr"] = self.lr() * group["share"]
        self.adam.step()
        self.step_number += 1
        keep = min(self.how.average, (1 + self.step_number) / (10 + self.step_number))
        torch._foreach_lerp_(self.means, self.masters, 1 - keep)
        torch._foreach_copy_(self.weights, self.masters)

    @torch.no_grad()
    def load_means(self) -> None:
        """Put the running mean into the modules (evaluation, the end of a stage)."""
        torch._foreach_copy_(self.weights, self.means)

    @torch.no_grad()
    def load_masters(self) -> None:
        """Put the current weights back (training goes on)."""
        torch._foreach_copy_(self.weights, self.masters)

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step_number,
            "masters": self.masters,
            "means": self.means,
            "adam": self.adam.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.step_number = state["step"]
        _copy(self.masters, state["masters"])
        _copy(self.means, state["means"])
        self.adam.load_state_dict(state["adam"])
        self.load_masters()


def _share(name: str, rates: Mapping[str, float]) -> float:
    return next((share for prefix, share in rates.items() if name.startswith(prefix)), 1.0)


@torch.no_grad()
def _copy(into: list[Tensor], source: list[Tensor]) -> None:
    for mine, theirs in zip(into, source, strict=True):
        mine.copy_(theirs)
