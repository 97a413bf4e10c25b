"""Two processes and one: the same sums of losses and, summed over the processes, the same gradients."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests import tiny
from tests.micro_batches import batch, objectives, piece, recipe
from training.data.batch import Batch
from training.objectives import Objectives
from training.peers import Peers
from training.recipe import Lora, Recipe

PROCESSES = multiprocessing.get_context("spawn")
SIZE = 2
LEARN = {"qformer": 1.0, "vision.post_layernorm": 1.0, "projection": 1.0, "llama": 2.0}
CASES: dict[str, tuple[Recipe, torch.dtype]] = {
    "float64": (recipe("itc", "itm", "itg", "lm", learn=LEARN, lora=Lora(rank=2)), torch.float64),
    "float32": (recipe("itc", "itm", "itg", "lm", learn=LEARN, lora=Lora(rank=2)), torch.float32),
}


def whole_batch(dtype: torch.dtype) -> Batch:
    """Six samples: one not valid, two of one group on different processes."""
    return replace(batch(6, groups=[0, 1, 2, 3, 1, 5], dtype=dtype), valid_B=torch.arange(6) != 2)


def run(made: Objectives, module: torch.nn.Module, of: Batch, peers: Peers, counts: Mapping[str, float]) -> Any:
    """As the loop does it: weighted sums over global counts, times the processes that DDP averages over."""
    losses = module(of, peers)
    total = torch.stack([losses.sums[name].double() / counts[name] for name in losses.sums]).sum()
    torch.autograd.backward(total * peers.size)
    return {
        "sums": {name: value.detach().double() for name, value in losses.sums.items()},
        "by_source": losses.by_source.double(),
        "gradients": {name: weight.grad for name, weight in made.named_parameters() if weight.grad is not None},
    }


def _child(rank: int, store: Path, checkpoint: Path, counts: dict[str, float], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(store), SIZE), rank=rank, world_size=SIZE)
    peers = Peers(rank, SIZE)
    for case, (how, dtype) in CASES.items():
        made = objectives(checkpoint, how, dtype=dtype)
        # Nothing that learns may be without a gradient, or DDP stops here.
        module = DistributedDataParallel(made, find_unused_parameters=False)
        found = run(made, module, piece(whole_batch(dtype), rank, SIZE), peers, counts)
        for value in (*found["sums"].values(), found["by_source"]):
            dist.all_reduce(value)
        if rank == 0:
            torch.save(found, folder / f"{case}.pt")
    found = {"gathered": _gathered(peers)}
    torch.save(found, folder / f"peers-{rank}.pt")
    dist.destroy_process_group()
    # DDP's reducer, freed when this returns, holds the GIL and waits for gloo's thread, which may wait for the GIL.
    os._exit(0)


def _gathered(peers: Peers) -> tuple[Tensor, Tensor, Tensor]:
    mine = torch.full((2, 3), 1.0 + peers.rank, requires_grad=True)
    every = peers.gather(mine)
    (every * torch.arange(4.0)[:, None] * (1 + peers.rank)).sum().backward()
    assert mine.grad is not None
    return every.detach(), mine.grad, peers.gather_plain(torch.tensor([peers.rank == 0, True]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes found, beside the checkpoint that they trained."""
    folder = tmp_path_factory.mktemp("processes")
    checkpoint = tiny.build_checkpoint(folder / "checkpoint", retrieval=True, reads_instruction=True)
    counts = objectives(checkpoint, CASES["float64"][0]).counts(whole_batch(torch.float64))
    arguments = (folder / "store", checkpoint, counts, folder)
    processes = [PROCESSES.Process(target=_child, args=(rank, *arguments)) for rank in range(SIZE)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * SIZE
    return folder


@pytest.mark.parametrize(("case", "close"), [("float64", 1e-10), ("float32", 1e-6)])
def test_two_processes_equal_one(folder: Path, case: str, close: float) -> None:
    how, dtype = CASES[case]
    made, of = objectives(folder / "checkpoint", how, dtype=dtype), whole_batch(dtype)
    counts = made.counts(of)
    parts = [made.counts(piece(of, rank, SIZE)) for rank in range(SIZE)]
    assert counts == {name: sum(part[name] for part in parts) for name in counts}
    one, two = run(made, made, of, Peers(), counts), torch.load(folder / f"{case}.pt")
    for name, value in one["sums"].items():
        assert float(two["sums"][name] / counts[name]) == pytest.approx(float(value / counts[name]), rel=close)
    assert torch.allclose(two["by_source"], one["by_source"], rtol=close)
    assert two["gradients"].keys() == one["gradients"].keys()
    largest = max(float(gradient.abs().max()) for gradient in one["gradients"].values())
    for name, gradient in one["gradients"].items():
        assert float((two["gradients"][name] - gradient).abs().max()) < close * largest, name


def test_gathering_sums_what_each_process_sends_back(folder: Path) -> None:
    for rank in range(SIZE):
        every, gradient, plain = torch.load(folder / f"peers-{rank}.pt")["gathered"]
        assert every.tolist() == [[1.0] * 3] * 2 + [[2.0] * 3] * 2
        assert gradient.tolist() == [[3.0 * (2 * rank + row)] * 3 for row in range(2)]
        assert plain.tolist() == [True, True, False, True]


def test_alone_there_is_nobody_to_gather_from() -> None:
    mine = torch.ones(2, requires_grad=True)
    assert Peers().gather(mine) is mine
    assert not Peers().gather_plain(mine).requires_grad
