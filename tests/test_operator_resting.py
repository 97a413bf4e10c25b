"""Jobs at rest: which looks leave a mark, what ends it, and that the resync passes over them and over nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from services.operator.resting import LONGEST_SECONDS, Marks, rests, versions
from services.operator.world import World
from tests.kube.faults import Fault
from tests.operator_programs import ACCOUNTS
from tests.operator_system import SYSTEM, OperatorSystem
from tests.operator_worlds import ALIGN, NOW, after, ago, at_work, changed, in_future, look

WAITS: dict[str, Any] = {"suspended": True, "queued": True, "started": False}
STAGE = {"name": "align", "type": "align", "data": [{"data": "d"}]}


def queued(**more: Any) -> World:
    """In its queue, and the status says so."""
    here = at_work(phase="Queued", job=WAITS, **{"pods": (), "queueName": "research", **more})
    return after(here, look(here))


def test_a_job_in_its_queue_rests_once_its_status_says_so() -> None:
    before = at_work(phase="Queued", job=WAITS, pods=(), queueName="research")
    assert not rests(before, look(before))
    assert rests(queued(), look(queued()))


def test_a_job_whose_pods_find_no_node_rests() -> None:
    here = at_work(phase="Queued", pods=({"phase": "Pending", "unscheduled": "0/1 nodes"},))
    here = after(here, look(here))
    assert rests(here, look(here))


def test_what_the_time_alone_may_change_does_not_rest() -> None:
    lost = queued(pods=({"phase": "Pending", "deleting_since": ago(5)},))
    running = at_work(phase="Running")
    backoff = at_work(phase="Backoff", job=None, pods=(), state={"next_attempt_time": in_future(60), "job_name": None})
    for before in (lost, running, backoff):
        here = after(before, look(before))
        assert not rests(here, look(here))
    leaving = changed(queued(), deleting_since=ago(1))
    assert not rests(leaving, look(leaving))


def test_a_new_version_of_anything_is_seen() -> None:
    job, child, pod = ({"metadata": {"uid": uid, "resourceVersion": "7"}} for uid in ("a", "b", "c"))
    newer = {"metadata": {"uid": "b", "resourceVersion": "8"}}
    seen = versions(job, [child, pod])
    assert versions(job, [pod, child]) == seen
    assert len({seen, versions(job, [child]), versions(job, [newer, pod]), versions(newer, [child, pod])}) == 4


@pytest.fixture
def marks(redis_url: str) -> Iterator[Marks]:
    with redis.Redis.from_url(redis_url) as link:
        yield Marks(link)


def test_a_mark_says_what_was_looked_at_and_ends_by_itself(marks: Marks) -> None:
    here = replace(queued(), versions="v")
    uid = here.job.uid
    assert marks.of([]) == marks.of([uid]) == {}
    marks.put(here, None, NOW)
    assert marks.of(["another", uid]) == {uid: "v"}
    [name] = marks.link.keys("*")
    assert 0 < marks.link.ttl(name) <= LONGEST_SECONDS
    marks.put(here, NOW + timedelta(seconds=40), NOW)
    assert 0 < marks.link.ttl(name) <= 40


def test_a_job_whose_time_has_come_gets_no_mark(marks: Marks) -> None:
    marks.put(queued(activeDeadlineSeconds=60), NOW - timedelta(seconds=1), NOW)
    assert marks.link.keys("*") == []


def test_without_redis_there_are_no_marks(tmp_path: Path) -> None:
    nobody = Marks(redis.Redis.from_url(f"unix://{tmp_path}/nobody"))
    nobody.put(queued(), None, NOW)
    assert nobody.of([ALIGN["name"]]) == {}


def test_the_resync_passes_over_what_rests_and_over_nothing_else(tmp_path: Path) -> None:
    with OperatorSystem(tmp_path, ZIYA_OPERATOR_RESYNC_SECONDS="0.5") as system:
        system.cluster.set_controllers("garbage", "jobs")
        system.submit("waits", STAGE, queueName="research")
        with redis.Redis.from_url(system.redis.url) as link:
            mark = f"ziya:rests:{system.job('waits')['metadata']['uid']}"
            system.until(lambda: link.exists(mark), "waits")
            resyncs, looks = seen(system, "list", "watcher"), seen(system, "get", "worker")
            # Once the last messages of the beginning are done with.
            system.until(lambda: passed_over(system, resyncs, looks), "waits")
            before = looks.met
            link.delete(mark)
            system.until(lambda: looks.met > before, "waits")
            system.until(lambda: link.exists(mark), "waits")
            link.set(mark, "of another state, since a message or an event was lost")
            before = looks.met
            system.until(lambda: looks.met > before, "waits")


def passed_over(system: OperatorSystem, resyncs: Fault, looks: Fault) -> bool:
    """Whether nobody looks during a few resyncs."""
    before, end = looks.met, resyncs.met + 4
    system.until(lambda: resyncs.met >= end)
    return looks.met == before


def seen(system: OperatorSystem, verb: str, program: str) -> Fault:
    """Counts requests for TrainingJobs, and does no harm."""
    account = f"system:serviceaccount:{SYSTEM}:{ACCOUNTS[program]}"
    return system.cluster.faults.add(Fault(verb, "trainingjobs", account))
