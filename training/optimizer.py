"""From gradients to new weights: rate schedule, clipping, AdamW or Muon, and a running mean of the weights.

All weights that learn are float32; lower precision exists only inside the forward pass (autocast). What a resume
needs is in `tensors()`: weights, moments and means by parameter name, made at once and not in the first step, so
that a checkpoint can be loaded into them in place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from training.errors import BadConfig
from training.muon import Muon
from training.recipe import Optimizer


class Group(Protocol):
    """Parameters that learn at the same share of the rate; `decay` says whether weight decay applies."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def share(self) -> float: ...
    @property
    def decay(self) -> bool: ...


def rate(how: Optimizer, step: int) -> float:
    """Linear warm-up from `warmup_rate`, then a cosine from `rate` down to `final_rate`; `step` counts from 0."""
    if step < how.warmup_steps:
        return how.warmup_rate + (how.rate - how.warmup_rate) * (step + 1) / how.warmup_steps
    done = min(1.0, (step - how.warmup_steps) / max(1, how.steps - how.warmup_steps))
    return how.final_rate + (how.rate - how.final_rate) * 0.5 * (1 + math.cos(math.pi * done))


class Optimization:
    """The optimizers of all learning parameters of `module`. One `step` an accumulated batch."""

    def __init__(self, module: nn.Module, groups: Sequence[Group], how: Optimizer) -> None:
        self.how = how
        every = dict(module.named_parameters())
        self.weights = {name: every[name] for group in groups for name in group.names}
        self.means = {name: weight.detach().clone() for name, weight in self.weights.items()} if how.ema else {}
        self._optimizers = _optimizers(self.weights, groups, how)
        self._begin()

    def rate(self, step: int) -> float:
        return rate(self.how, step)

    @torch.no_grad()
    def step(self, step: int) -> float:
        """Applies and clears the gradients; returns their norm before clipping."""
        weights: list[Tensor] = list(self.weights.values())
        norm = nn.utils.clip_grad_norm_(weights, self.how.clip, foreach=True)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        now = self.rate(step)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = now * group["share"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.how.ema:
            keep = min(self.how.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self.means.values()), weights, 1 - keep)
        return float(norm)

    @torch.no_grad()
    def swap_means(self) -> None:
        """Exchanges weights and their running mean; call it again to go back. Does nothing without EMA."""
        for name, mean in self.means.items():
            held = mean.clone()
            mean.copy_(self.weights[name])
            self.weights[name].copy_(held)

    def tensors(self) -> dict[str, Any]:
        """Everything that a resume needs, by name; load into these tensors in place."""
        moments: dict[str, dict[str, Tensor]] = {}
        names = {id(weight): name for name, weight in self.weights.items()}
        for optimizer in self._optimizers:
            for weight, state in optimizer.state.items():
                moments[names[id(weight)]] = dict(state)
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        return {"weights": weights, "moments": moments, **({"means": self.means} if self.means else {})}

    def _begin(self) -> None:
        """Makes the moments now: torch would make them in the first step, too late to load into."""
        for optimizer in self._optimizers:
            for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
                zeros = torch.zeros_like(weight, memory_format=torch.preserve_format)
                if isinstance(optimizer, Muon):
                    optimizer.state[weight] = {"momentum": zeros}
                else:
                    optimizer.state[weight] = {
                        "step": torch.tensor(0.0),
                        "exp_avg": zeros,
                        "exp_avg_sq": torch.zeros_like(zeros),
                    }


def _optimizers(
    weights: dict[str, nn.Parameter], groups: Sequence[Group], how: Optimizer
) -> list[torch.optim.Optimizer]:
    adamw: list[dict[str, Any]] = []
    muon: list[dict[str, Any]] = []
    for group in groups:
        for hidden in (True, False):
            mine = [
                weights[name] for name in group.names if (how.kind == "muon" and _is_hidden(name, weights)) == hidden
            ]
            settings = {"params": mine, "share": group.share, "weight_decay": how.weight_decay if group.decay else 0.0}
            if mine:
                (muon if hidden else adamw).append(settings)
    made: list[torch.optim.Optimizer] = []
    if adamw:
        made.append(torch.optim.AdamW(adamw, lr=how.rate, betas=how.betas, eps=how.eps, foreach=True))
    if muon:
        if any(hasattr(weight, "full_tensor") for weight in weights.values()):
            raise BadConfig("the muon optimizer needs whole matrices: use strategy ddp, or kind adamw with fsdp")
        made.append(Muon(muon, lr=how.rate))
    return made


def _is_hidden(name: str, weights: dict[str, nn.Parameter]) -> bool:
    """A matrix between two hidden layers: not an embedding, a head or a position."""
    outer = ("embed", "head", "query_tokens", "lm_head", "projection.weight")
    inside = ".layer." in name or ".layers." in name
    return weights[name].ndim == 2 and (inside or not any(word in name for word in outer))
