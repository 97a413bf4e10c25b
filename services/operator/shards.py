"""Pieces of a data stage, built in a process of their own where the claim is mounted, counted in the job's status.

What is built is the trainer's business (`python -m training.data_shard`); here is only that it is done once if it can
be, that it ends in time, and that its result or its failure is written down.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis
from celery.exceptions import SoftTimeLimitExceeded

from services.operator.actions import BuildShard
from services.operator.cluster import Cluster, Conflict
from services.operator.gather import fetch
from services.operator.manifests import file_of
from services.operator.naming import output_folder
from services.operator.queue import DATA_SECONDS
from services.operator.resource import Key, TrainingJob
from services.operator.status import Failure, Shard, StageStatus, removed
from services.operator.verdict import CRASHED, EXIT_BAD_CONFIG, REJECTED
from ziya.leash import on_leash

CONFLICTS = 20
LEASE_SECONDS = 15


class Shards:
    """`claims` is the folder where the data worker sees the claims of all namespaces."""

    def __init__(self, cluster: Cluster, locks: redis.Redis, claims: Path) -> None:
        self._cluster, self._locks, self._claims = cluster, locks, claims

    def claim_message(self, uid: str, piece: BuildShard) -> bool:
        """False where a message for this piece is on its way, or a worker at it. Only saves work: without Redis it is
        True."""
        try:
            return bool(self._locks.set(_lock(uid, piece), "1", nx=True, ex=DATA_SECONDS[1] + 10))
        except redis.RedisError:
            return True

    def build(self, key: Key, piece: BuildShard) -> None:
        """Raises ApiError."""
        with self._held(_lock(key.uid, piece)):
            job = fetch(self._cluster, key)
            if job is not None and _is_wanted(job.status.stage(piece.stage), piece):
                self._record(job, piece, *self._run(job, piece))

    @contextmanager
    def _held(self, name: str) -> Iterator[None]:
        """The lock, kept for as long as this process lives and a little more: then the piece is asked for again."""
        done = threading.Event()

        def keep() -> None:
            while not done.is_set():
                with suppress(redis.RedisError):
                    self._locks.set(name, "1", ex=LEASE_SECONDS)
                done.wait(LEASE_SECONDS / 3)

        keeper = threading.Thread(target=keep, daemon=True)
        keeper.start()
        try:
            yield
        finally:
            done.set()
            keeper.join()
            with suppress(redis.RedisError):
                self._locks.delete(name)

    def _run(self, job: TrainingJob, piece: BuildShard) -> tuple[Shard | None, Failure | None]:
        folder = self._claims / job.namespace / str(job.spec.output.pvc) / output_folder(job.name, job.uid)
        with tempfile.TemporaryDirectory(prefix="ziya-shard-") as scratch:
            file = Path(scratch) / "job.yaml"
            file.write_text(file_of(job), "utf-8")
            place = [str(file), "--stage", piece.stage, "--shard", str(piece.number), "--output", str(folder)]
            code, said = _call([sys.executable, "-m", "training.data_shard", *place])
        if code == 0:
            digest = json.loads(said.strip().splitlines()[-1])["digest"]
            return Shard(number=piece.number, digest=digest), None
        reason = REJECTED if code == EXIT_BAD_CONFIG else CRASHED
        lines = said.strip().splitlines() or [f"ended with code {code} and without a word"]
        failure = Failure(
            attempt=piece.attempt,
            reason=reason,
            exit_code=code,
            message=f"piece {piece.number}: {lines[-1]}"[:1024],
            log_tail="\n".join(lines[-40:])[-4096:],
            time=datetime.now(UTC),
        )
        return None, failure

    def _record(self, job: TrainingJob, piece: BuildShard, shard: Shard | None, failure: Failure | None) -> None:
        for _ in range(CONFLICTS):
            now = fetch(self._cluster, job.key)
            state = now.status.stage(piece.stage) if now is not None else None
            if now is None or state is None or not _is_wanted(state, piece):
                return
            shards = state.shards or ()
            counted = sorted((*shards, shard), key=lambda one: one.number) if shard else shards
            changes: dict[str, Any] = {"shards": tuple(counted)} if shard else {"last_failure": failure}
            stages = tuple(one.to(**changes) if one is state else one for one in now.status.stages)
            old, new = now.status.to_json(), now.status.to(stages=stages).to_json()
            try:
                self._cluster.patch_status(job.namespace, job.name, now.version, removed(old, new))
            except Conflict:
                continue
            return


def _is_wanted(state: StageStatus | None, piece: BuildShard) -> bool:
    if state is None or state.attempt != piece.attempt or state.phase not in ("Running", "Suspended"):
        return False
    return all(shard.number != piece.number for shard in state.shards or ())


def _call(command: list[str]) -> tuple[int, str]:
    """Exit code and output. A process group of its own, which ends with this task or with its process."""
    process = subprocess.Popen(
        [*on_leash(signal.SIGKILL), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate()
    except SoftTimeLimitExceeded:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return 1, f"not done after {DATA_SECONDS[0]} seconds: give the stage more `shards`"
    return process.returncode, said


def _lock(uid: str, piece: BuildShard) -> str:
    return f"ziya:shard:{uid}:{piece.stage}:{piece.attempt}:{piece.number}"
