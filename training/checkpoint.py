"""Checkpoints of a run: made beside the training, whole or not at all, and by the newest attempt only.

    <folder>/fence/<attempt>            who owns the folder (training/fence.py)
    <folder>/step-000000100/            one checkpoint (training/commit.py)
        __0_0.distcp …, .metadata       tensors, as torch.distributed.checkpoint writes them
        state.json                      what the loop gave: step, cursor of the data, …
        COMMIT                          written last: every file's size and SHA-256

`save` holds the training only while tensors are copied to memory of its own. A thread on every process then writes
its share and its digests, and that of rank 0 publishes. Tensors are kept by name and place and not by
process, so that a checkpoint of two processes loads into one, or the other way round, bit for bit.

A write that fails (disk full) costs one checkpoint and not the run; three in a row end it. Everything that goes wrong
in the thread comes out of the next call here. Methods are called by all processes in the same order.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from training import commit
from training.commit import STATE, File, Published
from training.errors import BadConfig, Fenced, TrainingError
from training.fence import Fence

log = logging.getLogger(__name__)
T = TypeVar("T")
_FAILURES_ALLOWED = 2


@dataclass(frozen=True)
class _Draft:
    """A checkpoint on its way: where it is written, and the loop's state as JSON."""

    folder: Path
    step: int
    state: str


class Checkpoints:
    """Of one attempt, on one of `world` processes. `group` is a CPU group of all of them, None when alone.

    With more than one process the constructor makes a second group for the thread, so all of them construct together.
    `last_stall_seconds` is how long the last `save` held its caller; `waits` counts saves that had to wait
    for the one before.
    """

    def __init__(
        self, folder: Path, *, attempt: int, keep: int, rank: int, world: int, group: dist.ProcessGroup | None
    ) -> None:
        if keep < 1:
            raise BadConfig(f"saving.keep is {keep}: at least one checkpoint must be kept")
        self.folder = folder
        self.last_stall_seconds = 0.0
        self.waits = 0
        self._fence = Fence(folder, attempt)
        self._attempt, self._keep, self._rank, self._world = attempt, keep, rank, world
        self._group = group
        # The thread's collectives must not get between those of the training.
        self._own_group = dist.new_group(backend="gloo") if world > 1 else None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        cuda = torch.cuda.is_available()
        # Kept, because it copies into the same (pinned) memory at every save.
        self._stager = DefaultStager(StagingOptions(cuda, False, False, cuda))
        self._saving: Future[str | None] | None = None
        self._failures = 0
        self._resumed: int | None = None

    def claim(self) -> None:
        """Makes this attempt the owner and removes what others left unfinished. Raises Fenced."""

        def take() -> None:
            self._fence.claim()
            commit.sweep(self.folder, self._attempt)

        try:
            self._on_first(take, self._group)
        except OSError as error:
            raise TrainingError(f"{self.folder} cannot be claimed: {error}") from error

    def latest(self) -> Published | None:
        """The newest checkpoint whose every byte is as it was published."""
        found = self._on_first(lambda: commit.newest(self.folder), self._group)
        self._resumed = found.step if found is not None else -1
        return found

    def state(self, published: Published) -> dict[str, Any]:
        """What `save` was given beside the tensors."""
        state: dict[str, Any] = json.loads((published.folder / STATE).read_text("utf-8"))
        return state

    def load(self, published: Published, tensors: dict[str, Any]) -> dict[str, Any]:
        """Loads into `tensors` in place; returns `state`. Raises BadConfig when the names or shapes are others."""
        planner = DefaultLoadPlanner()
        reader = FileSystemReader(published.folder)
        _be_quiet_about_one_process()
        try:
            load_tensors(
                tensors,
                storage_reader=reader,
                planner=planner,
                process_group=self._group,
                no_dist=self._world == 1,
            )
        except CheckpointException as error:
            raise _unloadable(published.folder, error) from error
        if planner.metadata is not None and (
            unused := set(planner.metadata.state_dict_metadata) - planner.state_dict.keys()
        ):
            raise BadConfig(f"{published.folder} has {_some(unused)}, which this run does not have")
        return self.state(published)

    def save(self, step: int, tensors: dict[str, Any], state: Mapping[str, Any]) -> None:
        """Copies `tensors` (a nested dict of tensors and plain values) and writes them in the background.

        Waits for the save before, if that is still running, and raises what came of it: see `finish`.
        """
        began = time.perf_counter()
        text = json.dumps(state, ensure_ascii=False, indent=1)
        self.waits += self._saving is not None and not self._saving.done()
        self.finish()
        draft = _Draft(self.folder / f"{commit.place(self.folder, step).name}.tmp-{self._attempt}", step, text)
        _be_quiet_about_one_process()
        staged = self._stager.stage(tensors)
        self._saving = self._thread.submit(self._write, draft, staged)
        self.last_stall_seconds = time.perf_counter() - began

    def poll(self) -> None:
        """Raises what a save that has ended came to; does not wait."""
        if self._saving is not None and self._saving.done():
            self.finish()

    def finish(self) -> bool:
        """Waits for the save that is running. False when the last one failed and the run may go on without it.

        Raises Fenced when a newer attempt owns the folder, TrainingError after three failures in a row.
        """
        if self._saving is not None:
            saving, self._saving = self._saving, None
            reason = saving.result()
            self._failures = 0 if reason is None else self._failures + 1
            if reason is not None:
                log.warning("a checkpoint in %s failed and is left out: %s", self.folder, reason)
            if self._failures > _FAILURES_ALLOWED:
                raise TrainingError(f"{self._failures} checkpoints in a row failed in {self.folder}: {reason}")
        return self._failures == 0

    def close(self) -> None:
        """Waits for the thread and frees the memory of the copies. What came of a running save is not told."""
        self._thread.shutdown(wait=True)
        self._stager.close()

    def _write(self, draft: _Draft, staged: Any) -> str | None:
        """In the thread, on every process alike. Returns why it failed, None when the checkpoint is published."""
        writer = FileSystemWriter(draft.folder, per_thread_copy_ahead=0)
        alone = self._world == 1
        try:
            save_tensors(staged, storage_writer=writer, process_group=self._own_group, no_dist=alone)
            files = self._digests(draft.folder)
            self._on_first(lambda: self._publish(draft, files), self._own_group)
            return None
        except CheckpointException as error:
            reason = _disk_failure(error)
        except OSError as error:
            reason = str(error)
        # A newer attempt sweeps the drafts of older ones: then that, and not the missing file, is the reason.
        self._on_first(lambda: self._give_up(draft), self._own_group)
        return reason

    def _digests(self, draft: Path) -> list[File]:
        """Files of all processes; each reads back its own. Raises the same OSError on all of them."""
        mine: list[File] | OSError
        try:
            mine = [commit.describe(path) for path in sorted(draft.glob(f"__{self._rank}_*"))]
        except OSError as error:
            mine = error
        everyone: list[Any] = [mine]
        if self._world > 1:
            everyone = [None] * self._world
            dist.all_gather_object(everyone, mine, group=self._own_group)
        for theirs in everyone:
            if isinstance(theirs, OSError):
                raise theirs
        return [file for theirs in everyone for file in theirs]

    def _publish(self, draft: _Draft, files: list[File]) -> None:
        commit.write_synced(draft.folder / STATE, draft.state)
        files += [commit.describe(draft.folder / name) for name in (".metadata", STATE)]
        _must_hold(draft.folder, files)
        try:
            self._fence.check()
        except Fenced:
            commit.discard(draft.folder)
            raise
        target = commit.place(self.folder, draft.step)
        commit.publish(draft.folder, Published(target, draft.step, self._attempt, tuple(files)))
        commit.prune(self.folder, self._attempt, self._keep, self._resumed)

    def _give_up(self, draft: _Draft) -> None:
        shutil.rmtree(draft.folder, ignore_errors=True)
        if self.folder.is_dir():
            self._fence.check()

    def _on_first(self, make: Callable[[], T], group: dist.ProcessGroup | None) -> T:
        """What `make` gives on rank 0, on all processes; or what it raises there."""
        said: list[Any] = [None]
        if self._rank == 0:
            try:
                said = [make()]
            except (TrainingError, OSError) as error:
                said = [error]
        if self._world > 1:
            dist.broadcast_object_list(said, src=0, group=group)
        if isinstance(said[0], TrainingError | OSError):
            raise said[0]
        value: T = said[0]
        return value


def _be_quiet_about_one_process() -> None:
    """torch warns at every save and load that is meant for one process. It stays off: the thread saves later."""
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


def _disk_failure(error: CheckpointException) -> str:
    """Why writing failed; torch's writer makes some of the disk's errors a RuntimeError. Raises what no disk does."""
    for rank, (cause, _) in error.failures.items():
        if not isinstance(cause, OSError | RuntimeError):
            raise TrainingError(f"rank {rank} cannot write its checkpoint: {type(cause).__name__}: {cause}") from cause
    rank, (cause, _) = next(iter(error.failures.items()))
    return f"rank {rank}: {cause}"


def _unloadable(folder: Path, error: CheckpointException) -> TrainingError:
    rank, (cause, _) = next(iter(error.failures.items()))
    if isinstance(cause, OSError):
        return TrainingError(f"{folder} cannot be read on rank {rank}: {cause}")
    return BadConfig(f"{folder} does not fit what this run trains: {cause}")


def _must_hold(draft: Path, files: list[File]) -> None:
    """Rank 0 sees what the others wrote, at its full size; on a network file system that is not a matter of course."""
    for file in files:
        if (size := (draft / file.name).stat().st_size) != file.size:
            raise OSError(f"{draft / file.name} has {size} bytes here, and {file.size} where it was written")


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")
