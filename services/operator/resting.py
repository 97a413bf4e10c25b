"""Marks that a look has found nothing to do: the resync passes over a job of which nothing has changed since.

A mark names the versions of all that was looked at, and is kept in Redis for some minutes. It only saves work: without
it, or with any other version, the job is looked at; a lost message or a missed event costs no more than without marks.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import redis

from services.operator.api import Object
from services.operator.draft import Plan
from services.operator.world import World

# Not all at once, so that jobs that were submitted together are not looked at together for ever.
SHORTEST_SECONDS, LONGEST_SECONDS = 300.0, 600.0


def versions(job: Object, children: Iterable[Object]) -> str:
    """Of a TrainingJob and its Jobs and pods: the same text for the same objects, and another one after any change."""
    seen = sorted(f"{one['metadata']['uid']}/{one['metadata']['resourceVersion']}" for one in children)
    return hashlib.sha256(" ".join([job["metadata"]["resourceVersion"], *seen]).encode()).hexdigest()[:32]


def rests(world: World, made: Plan) -> bool:
    """Whether the next look would find nothing to do either, before something changes or the plan's own time comes.

    A stage that waits for its queue or a node is all this is for: others depend on the time in ways of their own.
    """
    job = world.job
    if job.deleting_since is not None or job.status.phase != "Queued" or any(pod.deleting_since for pod in world.pods):
        return False
    return not made.actions and made.status == job.status


@dataclass(frozen=True)
class Marks:
    """`link` gives bytes."""

    link: redis.Redis

    def put(self, world: World, wake: datetime | None, now: datetime) -> None:
        """For some minutes, and not beyond the time that the plan named."""
        seconds = random.uniform(SHORTEST_SECONDS, LONGEST_SECONDS)
        if wake is not None:
            seconds = min(seconds, (wake - now).total_seconds())
        if seconds > 0:
            with suppress(redis.RedisError):
                self.link.set(_name(world.job.uid), world.versions, px=int(seconds * 1000) + 1)

    def of(self, uids: Sequence[str]) -> dict[str, str]:
        """The versions that were last looked at, by uid, where there is a mark."""
        try:
            found = self.link.mget([_name(uid) for uid in uids]) if uids else []
        except redis.RedisError:
            return {}
        return {uid: mark.decode() for uid, mark in zip(uids, found, strict=True) if isinstance(mark, bytes)}


def _name(uid: str) -> str:
    return f"ziya:rests:{uid}"
