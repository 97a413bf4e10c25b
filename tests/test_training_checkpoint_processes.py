"""Checkpoints of processes that are killed, whose disk is full, and that are more or fewer than before."""

from __future__ import annotations

import multiprocessing
import random
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.checkpoints import alone, empty, leaves, loaded, names, same, save, state_of
from training import commit
from training.checkpoint import Checkpoints
from training.errors import Fenced, TrainingError

PROCESSES = multiprocessing.get_context("spawn")


def run(*targets: tuple[Callable[..., None], tuple[Any, ...]]) -> None:
    """One process a target; all must end well."""
    processes = [PROCESSES.Process(target=target, args=arguments) for target, arguments in targets]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def run_two(target: Callable[..., None], folder: Path, *arguments: Any) -> None:
    """`target(rank, group, folder, …)` in two processes of a gloo group."""
    store = folder.with_suffix(".store")
    run(*[(_join, (rank, store, target, folder, *arguments)) for rank in range(2)])
    store.unlink(missing_ok=True)


def _join(rank: int, store: Path, target: Callable[..., None], *arguments: Any) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(store), 2), rank=rank, world_size=2)
    target(rank, dist.new_group(backend="gloo"), *arguments)
    dist.destroy_process_group()


def pair(rank: int, group: dist.ProcessGroup, folder: Path, attempt: int = 1) -> Checkpoints:
    return Checkpoints(folder, attempt=attempt, keep=2, rank=rank, world=2, group=group)


def _limited(bytes_a_file: int | None) -> None:
    """Files of this process may grow to so many bytes: a full disk for those that are larger."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if bytes_a_file is None else bytes_a_file, hard))


def _full_disk(folder: Path) -> None:
    checkpoints = alone(folder, keep=1)
    save(checkpoints, 1)
    _limited(1000)
    for step in (2, 3):
        checkpoints.save(step, state_of(step), {"step": step})
        assert not checkpoints.finish()
    assert names(folder) == ["step-000000001"]
    assert loaded(checkpoints)[0] == 1
    _limited(None)
    save(checkpoints, 4)
    _limited(1000)
    for step in (5, 6, 7):
        checkpoints.save(step, state_of(step), {"step": step})
    with pytest.raises(TrainingError, match="3 checkpoints in a row failed"):
        checkpoints.finish()
    assert names(folder) == ["step-000000004"]


def test_a_full_disk_costs_a_checkpoint_and_three_in_a_row_the_run(tmp_path: Path) -> None:
    run((_full_disk, (tmp_path / "run",)))


def advance(tensors: dict[str, Any], step: int) -> None:
    for leaf in leaves(tensors):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            leaf.mul_(0.999).add_(step)


def _trains(folder: Path, attempt: int, told: Connection) -> None:
    """Goes on from the newest checkpoint for ever, saving every step."""
    checkpoints, tensors, step = alone(folder, attempt), empty(100_000), 0
    if (published := checkpoints.latest()) is not None:
        step = checkpoints.load(published, tensors)["step"]
    while True:
        step += 1
        advance(tensors, step)
        checkpoints.save(step, tensors, {"step": step})
        told.send(step)


def _killed(folder: Path, attempt: int, seconds: float) -> int:
    """Kills a run so long after its first save; returns the last step it had begun to save."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_trains, args=(folder, attempt, theirs))
    process.start()
    theirs.close()
    assert ours.poll(60)
    step: int = ours.recv()
    process.join(seconds)
    process.kill()
    process.join()
    try:
        while True:
            step = ours.recv()
    except EOFError:
        return step


@pytest.mark.slow
@pytest.mark.timeout(400)  # ten fresh processes that import torch
def test_a_run_that_is_killed_again_and_again_goes_on_as_if_it_had_not_been(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(20240613)
    last = 0
    for attempt in range(1, 11):
        begun = _killed(tmp_path, attempt, chance.uniform(0.0, 0.12))
        found = commit.newest(tmp_path)
        last = max(last, found.step if found is not None else 0)
        assert (found.step if found is not None else 0) == last
        assert last in {begun - 1, begun, begun + 1}
    assert not [record for record in caplog.records if record.name.startswith("training.")]
    checkpoints = alone(tmp_path, attempt=99)
    published = checkpoints.latest()
    assert published is not None
    tensors, undisturbed = empty(100_000), empty(100_000)
    checkpoints.load(published, tensors)
    undisturbed["plain"] = tensors["plain"]
    for step in range(1, published.step + 1):
        advance(undisturbed, step)
    assert same(tensors, undisturbed)


def _save_as_two(rank: int, group: dist.ProcessGroup, folder: Path) -> None:
    checkpoints = pair(rank, group, folder)
    checkpoints.claim()
    assert checkpoints.latest() is None
    save(checkpoints, 10, 20, 30)
    assert loaded(checkpoints)[0] == 30


def _load_as_two(rank: int, group: dist.ProcessGroup, folder: Path) -> None:
    checkpoints = pair(rank, group, folder, attempt=2)
    checkpoints.claim()
    step, tensors = loaded(checkpoints)
    assert step == 30
    assert same(tensors, state_of(30))
    save(checkpoints, 40)


def test_two_processes_load_what_two_have_saved_and_so_does_one(tmp_path: Path) -> None:
    run_two(_save_as_two, tmp_path / "run")
    assert names(tmp_path / "run") == ["step-000000020", "step-000000030"]
    run_two(_load_as_two, tmp_path / "run")
    step, tensors = loaded(alone(tmp_path / "run", attempt=3))
    assert step == 40
    assert same(tensors, state_of(40))


def test_two_processes_load_what_one_has_saved(tmp_path: Path) -> None:
    save(alone(tmp_path / "run"), 30)
    run_two(_load_as_two, tmp_path / "run")


def _network(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Rows that do not divide by two, and a layer of one row, of which the second process has none."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 1))
    return network, torch.optim.AdamW(network.parameters(), lr=0.1)


def _learn(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One step by a gradient that is the same however the weights are spread."""
    for parameter in network.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()


def _sharded(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    network, _ = _network(seed)
    fully_shard(network, mesh=init_device_mesh("cpu", (2,)))
    return network, torch.optim.AdamW(network.parameters(), lr=0.1)


def _tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    moments = {name: dict(optimizer.state[parameter]) for name, parameter in network.named_parameters()}
    return {"weights": dict(network.named_parameters()), "moments": moments}


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items()}
    return value.full_tensor() if isinstance(value, DTensor) else value


def _save_sharded(rank: int, group: dist.ProcessGroup, folder: Path) -> None:
    network, optimizer = _sharded(1)
    _learn(network, optimizer)
    checkpoints = pair(rank, group, folder)
    checkpoints.claim()
    for step in (1, 2):
        checkpoints.save(step, _tensors(network, optimizer), {})
        _learn(network, optimizer)
    assert checkpoints.finish()


def _load_sharded(rank: int, group: dist.ProcessGroup, folder: Path) -> None:
    network, optimizer = _sharded(7)
    _learn(network, optimizer)
    checkpoints = pair(rank, group, folder, attempt=2)
    checkpoints.claim()
    published = checkpoints.latest()
    assert published is not None
    tensors = _tensors(network, optimizer)
    checkpoints.load(published, tensors)
    assert same(_whole(tensors), _after(2))


def _after(steps: int) -> dict[str, Any]:
    network, optimizer = _network(1)
    for _ in range(steps):
        _learn(network, optimizer)
    return _tensors(network, optimizer)


def test_sharded_weights_and_moments_load_into_one_process(tmp_path: Path) -> None:
    run_two(_save_sharded, tmp_path / "run")
    run_two(_load_sharded, tmp_path / "run")
    checkpoints = alone(tmp_path / "run", attempt=3)
    published = checkpoints.latest()
    assert published is not None
    network, optimizer = _network(7)
    _learn(network, optimizer)
    tensors = _tensors(network, optimizer)
    checkpoints.load(published, tensors)
    assert same(tensors, _after(2))


def test_weights_of_one_process_load_into_shards(tmp_path: Path) -> None:
    checkpoints = alone(tmp_path / "run")
    checkpoints.save(2, _after(2), {})
    assert checkpoints.finish()
    run_two(_load_sharded, tmp_path / "run")


def _lose_as_two(rank: int, group: dist.ProcessGroup, folder: Path) -> None:
    checkpoints = pair(rank, group, folder)
    checkpoints.claim()
    save(checkpoints, 10)
    if rank == 1:
        _limited(100)
    checkpoints.save(20, state_of(20), {"step": 20})
    assert not checkpoints.finish()
    _limited(None)
    dist.barrier(group)
    assert names(folder) == ["step-000000010"]
    if rank == 0:
        alone(folder, attempt=2)
    dist.barrier(group)
    checkpoints.save(30, state_of(30), {"step": 30})
    with pytest.raises(Fenced, match="attempt 2 owns"):
        checkpoints.finish()
    with pytest.raises(Fenced, match="attempt 2 has run"):
        pair(rank, group, folder, attempt=2).claim()
    assert names(folder) == ["step-000000010"]


def test_both_processes_learn_of_a_full_disk_and_of_a_newer_attempt(tmp_path: Path) -> None:
    run_two(_lose_as_two, tmp_path / "run")
