"""Rates, clipping, AdamW, Muon and the running mean, each against a computation of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from training.errors import BadConfig
from training.muon import Muon, orthogonal
from training.optimizer import Optimization, rate
from training.recipe import Optimizer


@dataclass(frozen=True)
class Group:
    names: tuple[str, ...]
    share: float = 1.0
    decay: bool = True


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2, bias=False))


def train(optimization: Optimization, net: nn.Module, steps: range) -> list[float]:
    norms = []
    for step in steps:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        net(x).square().mean().backward()
        norms.append(optimization.step(step))
    return norms


def test_the_rate_warms_up_and_follows_a_cosine() -> None:
    how = Optimizer(steps=110, rate=1e-2, final_rate=1e-4, warmup_steps=10, warmup_rate=1e-3)

    assert rate(how, 0) == pytest.approx(1e-3 + 9e-3 / 10)
    assert rate(how, 9) == pytest.approx(1e-2)
    assert rate(how, 60) == pytest.approx((1e-2 + 1e-4) / 2)
    assert rate(how, 110) == pytest.approx(1e-4)
    assert rate(how, 500) == pytest.approx(1e-4)


def test_adamw_with_shares_decay_and_clipping_follows_its_formula() -> None:
    how = Optimizer(steps=3, rate=1e-2, final_rate=1e-2, warmup_steps=0, weight_decay=0.1, clip=0.05, eps=1e-8)
    net = module()
    optimization = Optimization(net, [Group(("0.weight", "1.weight"), 0.5), Group(("0.bias",), 1.0, False)], how)
    expected = {name: weight.detach().double().clone() for name, weight in net.named_parameters()}
    first = {name: torch.zeros_like(value) for name, value in expected.items()}
    second = {name: torch.zeros_like(value) for name, value in expected.items()}
    for step in range(3):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        net(x).square().mean().backward()
        gradients = {
            name: weight.grad.double().clone() for name, weight in net.named_parameters() if weight.grad is not None
        }
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
        assert optimization.step(step) == pytest.approx(norm, rel=1e-5)
        for name, whole in gradients.items():
            gradient = whole * min(1.0, 0.05 / norm)
            lr, decay = (1e-2, 0.0) if name == "0.bias" else (5e-3, 0.1)
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.98 * second[name] + 0.02 * gradient.square()
            unbiased = first[name] / (1 - 0.9 ** (step + 1)) / ((second[name] / (1 - 0.98 ** (step + 1))).sqrt() + 1e-8)
            expected[name] = expected[name] * (1 - lr * decay) - lr * unbiased

    for name, weight in net.named_parameters():
        torch.testing.assert_close(weight.detach().double(), expected[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_tensors_hold_everything_that_a_resume_needs(kind: str) -> None:
    how = Optimizer(kind=kind, steps=10, rate=1e-2, warmup_steps=2, ema=0.9)  # type: ignore[arg-type]
    groups = [Group(("0.weight", "1.weight")), Group(("0.bias",), 1.0, False)]
    net, again = module(), module()
    undisturbed, resumed = Optimization(net, groups, how), Optimization(again, groups, how)
    train(undisturbed, net, range(4))
    copy(undisturbed.tensors(), resumed.tensors())

    assert train(undisturbed, net, range(4, 8)) == train(resumed, again, range(4, 8))
    for one, other in zip(flat(undisturbed.tensors()), flat(resumed.tensors()), strict=True):
        assert torch.equal(one, other)


def test_the_running_mean_is_one_and_can_be_exchanged() -> None:
    how = Optimizer(steps=10, rate=1e-1, warmup_steps=0, ema=0.5)
    net = module()
    optimization = Optimization(net, [Group(("1.weight",))], how)
    weight, mean = dict(net.named_parameters())["1.weight"], None
    for step in range(5):
        mean = weight.detach().clone() if mean is None else mean
        train(optimization, net, range(step, step + 1))
        keep = min(0.5, (1 + step) / (10 + step))
        mean = keep * mean + (1 - keep) * weight.detach()
    now = weight.detach().clone()
    optimization.swap_means()
    torch.testing.assert_close(weight.detach(), mean)
    optimization.swap_means()
    assert torch.equal(weight.detach(), now)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_muons_direction_has_the_gradients_singular_vectors_and_values_near_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
    direction, matrix = orthogonal(matrices)[1], matrices[1]
    values = torch.linalg.svdvals(direction)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)

    assert float(values.min()) > 0.3
    assert float(values.max()) < 1.3
    inner = left.T @ direction @ right.T
    torch.testing.assert_close(inner, torch.diag(inner.diag()), atol=2e-3, rtol=0)


def test_muon_moves_each_matrix_as_if_it_were_alone() -> None:
    draw = torch.Generator().manual_seed(5)
    shapes = [(8, 24), (16, 16), (8, 24), (24, 8), (8, 24)]
    together = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
    apart = [nn.Parameter(weight.detach().clone()) for weight in together]
    optimizers = [Muon(together, lr=0.1), *(Muon([weight], lr=0.1) for weight in apart)]
    for step in range(3):
        for number, (one, other) in enumerate(zip(together, apart, strict=True)):
            one.grad = torch.randn(one.shape, generator=draw)
            if (step, number) == (1, 2):
                one.grad = None  # a weight that nothing reached stays where it is
            other.grad = None if one.grad is None else one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_muon_moves_by_the_rate_whatever_the_gradients_size() -> None:
    for size in (1e-6, 1.0, 1e3):
        weight = nn.Parameter(torch.zeros(16, 16))
        weight.grad = torch.randn(16, 16, generator=torch.Generator().manual_seed(1)) * size
        Muon([weight], lr=0.1).step()
        assert 0.05 < float(weight.detach().norm()) / (0.1 * 0.2 * 4 * 4) < 1.3


def test_muon_refuses_sharded_matrices_by_name() -> None:
    class Sharded(nn.Parameter):
        def full_tensor(self) -> torch.Tensor:
            return self.data

    net = nn.Module()
    net.weight = Sharded(torch.zeros(4, 4))
    with pytest.raises(BadConfig, match="muon"):
        Optimization(net, [Group(("weight",))], Optimizer(kind="muon"))


def flat(tensors: object) -> list[torch.Tensor]:
    if isinstance(tensors, dict):
        return [one for name in sorted(tensors) for one in flat(tensors[name])]
    assert isinstance(tensors, torch.Tensor)
    return [tensors]


def copy(source: object, target: object) -> None:
    with torch.no_grad():
        for one, other in zip(flat(source), flat(target), strict=True):
            other.copy_(one)
