"""Looks at all TrainingJobs every half minute, so that no lost message and no missed event matters for longer.

It is also the clock: a retry's time, a deadline, a time to live. And it does what only the operator itself can do while
the broker is away: it says that jobs do not go on, and lets deleted ones go, so that a namespace can be deleted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from services.operator.api import ApiError, Object
from services.operator.children import JOB_UID
from services.operator.cluster import Cluster, Conflict
from services.operator.conditions import with_condition
from services.operator.hints import Hints
from services.operator.metrics import PHASES, OperatorMetrics
from services.operator.resource import FINALIZER, Key, TrainingJob, read
from services.operator.resting import Marks, versions
from services.operator.status import removed
from services.operator.watch import Watcher

SETTLED = timedelta(minutes=10)
log = logging.getLogger(__name__)


class Resync:
    """While the broker is away for `silent_seconds`, it says so and lets go what was deleted `finalize_after` ago."""

    def __init__(
        self,
        cluster: Cluster,
        hints: Hints,
        watcher: Watcher,
        metrics: OperatorMetrics,
        marks: Marks,
        *,
        silent_seconds: float = 60.0,
        finalize_after: timedelta = timedelta(minutes=2),
    ) -> None:
        self._cluster, self._hints, self._watcher, self._metrics = cluster, hints, watcher, metrics
        self._marks = marks
        self._silent_seconds, self._finalize_after = silent_seconds, finalize_after

    async def run(self, namespace: str, seconds: float) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look(namespace)
                self._metrics.resyncs.labels("done").inc()
            except ApiError as error:
                self._metrics.resyncs.labels("failed").inc()
                log.warning("no resync this time: %s", error)
            await asyncio.sleep(seconds)

    async def look(self, namespace: str) -> None:
        """Once. Raises ApiError."""
        now = datetime.now(UTC)
        phases, known, due = await asyncio.to_thread(self._survey, namespace, now)
        for phase in PHASES:
            self._metrics.jobs.labels(phase).set(phases[phase])
        self._watcher.known.update(known)
        for job in due:
            self._hints.mark(key_of(job), deleting="deletionTimestamp" in job["metadata"])
        down = self._hints.down_since
        if down is not None and time.monotonic() - down > self._silent_seconds:
            await asyncio.to_thread(self._without_broker, due, now)

    def _survey(self, namespace: str, now: datetime) -> tuple[Counter[str], dict[str, Key], list[Object]]:
        """How many jobs there are by phase, all keys by uid, and the jobs at which to look."""
        phases: Counter[str] = Counter()
        known, due = {}, []
        for job in self._cluster.training_jobs(namespace):
            phases[_phase(job) or "Pending"] += 1
            known[job["metadata"]["uid"]] = key_of(job)
            if is_due(job, now):
                due.append(job)
        return phases, known, self._restless(namespace, due)

    def _restless(self, namespace: str, jobs: list[Object]) -> list[Object]:
        """Without those of which nothing has changed since a worker found nothing to do for them."""
        marks = self._marks.of([job["metadata"]["uid"] for job in jobs if _phase(job) == "Queued"])
        if not marks:
            return jobs
        children: dict[str, list[Object]] = {uid: [] for uid in marks}
        for child in self._cluster.children(namespace):
            children.get(child["metadata"]["labels"][JOB_UID], []).append(child)
        seen = {uid: versions(job, children[uid]) for job in jobs if (uid := job["metadata"]["uid"]) in marks}
        return [job for job in jobs if (uid := job["metadata"]["uid"]) not in marks or marks[uid] != seen[uid]]

    def _without_broker(self, jobs: Sequence[Object], now: datetime) -> None:
        for raw in jobs:
            job = read(raw)
            try:
                if job.deleting_since is None and not job.is_over:
                    self._say_so(job, now)
                elif self._is_pinned(job, now):
                    others = [name for name in job.finalizers if name != FINALIZER]
                    self._cluster.set_finalizers(job.namespace, job.name, others, job.version)
            except Conflict:
                continue
            except ApiError as error:
                log.warning("%s/%s: %s", job.namespace, job.name, error)

    def _is_pinned(self, job: TrainingJob, now: datetime) -> bool:
        since = job.deleting_since
        return since is not None and now - since > self._finalize_after and FINALIZER in job.finalizers

    def _say_so(self, job: TrainingJob, now: datetime) -> None:
        said = "the operator's message broker takes nothing; stages that run go on, but no other one starts"
        status = with_condition(
            job.status, "Progressing", False, "BrokerUnavailable", said, generation=job.generation, now=now
        )
        if patch := removed(job.status.to_json(), status.to_json()):
            self._cluster.patch_status(job.namespace, job.name, job.version, patch)


def is_due(raw: Object, now: datetime) -> bool:
    """Whether looking could find anything to do. A job that rests costs nothing but this."""
    meta, spec, status = raw["metadata"], raw.get("spec", {}), raw.get("status") or {}
    if "deletionTimestamp" in meta:
        return True
    phase = status.get("phase")
    if phase in ("Complete", "Failed"):
        ended, lives = status.get("completionTime"), spec.get("ttlSecondsAfterFinished")
        age = now - datetime.fromisoformat(ended) if ended else SETTLED
        # For a while after its end something may still have to be stopped.
        return age < SETTLED or (lives is not None and age >= timedelta(seconds=lives))
    rests = phase == "Suspended" and spec.get("suspend", False)
    return not (rests and status.get("observedGeneration") == meta.get("generation"))


def _phase(raw: Object) -> str | None:
    phase: str | None = (raw.get("status") or {}).get("phase")
    return phase


def key_of(raw: Object) -> Key:
    meta = raw["metadata"]
    return Key(meta["namespace"], meta["name"], meta["uid"])
