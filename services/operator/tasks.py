"""The tasks. Each reads the world anew, does its piece, and is done in seconds; each may come twice, late, or never."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import redis
from celery import Celery, Task
from kombu.exceptions import OperationalError

from services.operator.actions import BuildShard
from services.operator.api import Api, ApiError, connect
from services.operator.apply import Hands
from services.operator.broker import redis_client
from services.operator.cluster import Cluster, Conflict
from services.operator.flush import flush
from services.operator.gather import gather
from services.operator.manifests import Surroundings
from services.operator.plan import plan
from services.operator.queue import (
    BUILD_SHARD,
    DATA_SECONDS,
    FINALIZE,
    FLUSH_PROGRESS,
    HEARTBEAT,
    RECONCILE,
)
from services.operator.resource import Key, TrainingJob
from services.operator.resting import Marks, rests
from services.operator.settings import OperatorSettings
from services.operator.shards import Shards

CONFLICTS = 5
RETRIES, LONGEST_RETRY_SECONDS = 5, 60
# A plan may ask to be made again at a time. Further ahead than this the resync is there for it.
LONGEST_WAKE_SECONDS = 60.0
log = logging.getLogger(__name__)


class Workshop:
    """What the tasks of one process share; made in that process when first used, after it was forked."""

    def __init__(self, settings: OperatorSettings, app: Celery) -> None:
        self.settings, self.app = settings, app

    @cached_property
    def cluster(self) -> Cluster:
        return Cluster(Api(connect(self.settings.operator_kubeconfig)))

    @cached_property
    def shards(self) -> Shards:
        return Shards(self.cluster, self.locks, Path(self.settings.operator_claims_folder))

    @cached_property
    def locks(self) -> redis.Redis:
        """Marks that only save work: without them more is looked at, never less done."""
        return redis_client(self.settings, seconds=3)

    @cached_property
    def marks(self) -> Marks:
        return Marks(self.locks)

    def claim_wake(self, key: Key, seconds: float) -> bool:
        """False where somebody will look by then anyway: else every look would add one more that adds one more."""
        try:
            return bool(self.locks.set(f"ziya:wake:{key.uid}", "1", nx=True, px=int(seconds * 1000) + 1))
        except redis.RedisError:
            return False

    @cached_property
    def hands(self) -> Hands:
        settings = self.settings
        where = Surroundings(
            image=settings.operator_trainer_image,
            account=settings.operator_trainer_account,
            rendezvous_port=settings.operator_rendezvous_port,
            progress_url=settings.operator_progress_url,
            progress_audience=settings.operator_progress_audience,
        )
        return Hands(self.cluster, where, self._publish_shard)

    def reconcile(self, key: Key) -> float | None:
        """In how many seconds to look again, if the plan says so. Raises ApiError."""
        for _ in range(CONFLICTS):
            world = gather(self.cluster, key, timedelta(seconds=self.settings.operator_node_lost_seconds))
            if world is None:
                return None
            now = datetime.now(UTC)
            made = plan(world, now)
            try:
                self.hands.apply(world, made)
            except Conflict:
                continue  # somebody was first: what there is to do now may be something else
            if rests(world, made):
                self.marks.put(world, made.wake, now)
            return max((made.wake - now).total_seconds(), 0.1) if made.wake else None
        log.info("%s/%s is being written all the time; the next message tries again", key.namespace, key.name)
        return 1.0

    def _publish_shard(self, job: TrainingJob, piece: BuildShard) -> None:
        if not self.shards.claim_message(job.uid, piece):
            return
        arguments = [job.key, piece.stage, piece.attempt, piece.number]
        try:
            self.app.send_task(BUILD_SHARD, arguments, retry=False)
        except OperationalError as error:
            log.warning("a piece of data could not be queued, the next resync tries again: %s", error)


def register(app: Celery, settings: OperatorSettings) -> Workshop:
    """The tasks, on `app`."""
    workshop = Workshop(settings, app)

    def look(task: Task, key: Key) -> None:
        try:
            seconds = workshop.reconcile(key)
        except ApiError as error:
            raise _again(task, error) from error
        if seconds is not None and seconds <= LONGEST_WAKE_SECONDS and workshop.claim_wake(key, seconds):
            task.apply_async((key,), countdown=seconds, retry=False)

    @app.task(name=RECONCILE, bind=True, max_retries=RETRIES)
    def reconcile(self: Task, key: list[str]) -> None:
        look(self, Key(*key))

    @app.task(name=FINALIZE, bind=True, max_retries=RETRIES)
    def finalize(self: Task, key: list[str]) -> None:
        look(self, Key(*key))

    @app.task(name=FLUSH_PROGRESS, bind=True, max_retries=0)
    def flush_progress(self: Task, key: list[str], stage: str, attempt: int, told: Mapping[str, Any]) -> None:
        try:
            flush(workshop.cluster, Key(*key), stage, attempt, told)
        except ApiError as error:
            log.warning("progress of %s was not written, the next one is: %s", "/".join(key[:2]), error)

    @app.task(name=BUILD_SHARD, bind=True, max_retries=0, soft_time_limit=DATA_SECONDS[0], time_limit=DATA_SECONDS[1])
    def build_shard(self: Task, key: list[str], stage: str, attempt: int, number: int) -> None:
        workshop.shards.build(Key(*key), BuildShard(stage, attempt, number))
        self.app.send_task(RECONCILE, [key], retry=False)

    @app.task(name=HEARTBEAT)
    def heartbeat() -> None:
        Path(settings.operator_heartbeat_file).touch()

    return workshop


def _again(task: Task, error: ApiError) -> Exception:
    """A retry, later each time and not all at once; after the last one the resync is there."""
    tried: int = task.request.retries
    seconds = min(2.0**tried, LONGEST_RETRY_SECONDS) * random.uniform(0.5, 1.0)
    log.warning("%s%s: %s; again in %.1f s", task.name, tuple(task.request.args), error, seconds)
    again: Exception = task.retry(exc=error, countdown=seconds, throw=False)
    return again
