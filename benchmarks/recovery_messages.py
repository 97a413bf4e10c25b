"""Rows in which messages, processes of the operator, or the API server are lost: nothing trains in them."""

from __future__ import annotations

import signal
import time

import redis
from kubernetes.client import ApiException

from benchmarks.recovery_scene import Recovery, Row, Scene
from services.operator.queue import CONTROL, RECONCILE, make_queue

DOWN_SECONDS, UNREACHABLE_SECONDS, COPIES = 5.0, 20.0, 20


def child_killed(scene: Scene, number: int) -> Recovery:
    scene.restart("worker")
    scene.wait_for_worker()
    held = scene.hold("patch", "trainingjobs/status", "worker")
    uid = scene.submit(f"child-{number}")
    scene.wait(lambda: held.met)
    victim, began = scene.busy_child(), time.monotonic()
    victim.send_signal(signal.SIGKILL)
    return Recovery(scene.watch.first(uid, "first") - began)


def worker_killed(scene: Scene, number: int) -> Recovery:
    scene.after_resync()
    held = scene.hold("patch", "trainingjobs/status", "worker")
    uid = scene.submit(f"worker-{number}")
    scene.wait(lambda: held.met)
    began = time.monotonic()
    scene.restart("worker")
    return Recovery(scene.watch.first(uid, "first") - began)


def message_lost(scene: Scene, number: int) -> Recovery:
    """Taken by a worker that dies before it has written down that it has it (kombu issue 305)."""
    scene.after_resync()
    scene.freeze()
    with scene.redis() as link:
        sent = _published(link)
        uid = scene.submit(f"lost-{number}")
        scene.wait(lambda: _published(link) > sent)
        began = time.monotonic()
        scene.system.kill("worker")
        link.delete(CONTROL)  # where Redis had not given it away yet
    scene.system.start("worker")
    return Recovery(scene.watch.first(uid, "first") - began)


def _published(link: redis.Redis) -> int:
    return int(link.info("commandstats").get("cmdstat_lpush", {}).get("calls", 0))


def redis_killed(scene: Scene, number: int) -> Recovery:
    """With the message in it, which nobody has taken."""
    scene.after_resync()
    scene.freeze()
    time.sleep(2.0)  # what it has asked Redis for is over
    with scene.redis() as link:
        uid = scene.submit(f"empty-{number}")
        scene.wait(lambda: link.llen(CONTROL))
    scene.system.redis.kill()
    scene.freeze(signal.SIGCONT)
    time.sleep(DOWN_SECONDS)
    scene.system.redis.start()
    began = time.monotonic()
    return Recovery(scene.watch.first(uid, "first") - began)


def stage_ends_without_redis(scene: Scene, number: int) -> Recovery:
    name = f"ends-{number}"
    uid = scene.run(name, "first", "second")
    scene.system.redis.kill()
    scene.end_stage(name, "first")
    time.sleep(DOWN_SECONDS)
    scene.system.redis.start()
    began = time.monotonic()
    return Recovery(scene.watch.first(uid, "second") - began)


def api_unreachable(scene: Scene, number: int) -> Recovery:
    name = f"cut-{number}"
    uid, faults = scene.run(name, "first", "second"), scene.system.cluster.faults
    with faults.partitioned():
        scene.end_stage(name, "first")
        time.sleep(UNREACHABLE_SECONDS)
    began = time.monotonic()
    return Recovery(scene.watch.first(uid, "second") - began)


def watcher_killed(scene: Scene, number: int) -> Recovery:
    """The job is submitted while there is none."""
    began = time.monotonic()
    scene.system.kill("watcher")
    uid = scene.submit(f"unwatched-{number}")
    scene.system.start("watcher")
    return Recovery(scene.watch.first(uid, "first") - began)


def delivered_again(scene: Scene, number: int) -> Recovery:
    """Late copies of a message. Nothing may change: neither the job nor its Jobs."""
    queue = make_queue(scene.system.redis.url)
    name = f"again-{number}"
    uid = scene.run(name)
    time.sleep(3.0)
    before, began = scene.system.job(name), time.monotonic()
    for _ in range(COPIES):
        queue.send_task(RECONCILE, [["default", name, uid]])
    with scene.redis() as link:
        scene.wait(lambda: not link.llen(CONTROL) and not link.hlen("unacked"))
    took = time.monotonic() - began
    if scene.system.job(name) != before or scene.watch.count(uid) != 1:
        raise SystemExit(f"{COPIES} copies of a message have changed something:\n{scene.system.story(name)}")
    return Recovery(took)


def made_again(scene: Scene, number: int) -> Recovery:
    name = f"twin-{number}"
    scene.run(name)
    scene.system.delete(name)
    uid = scene.wait(lambda: _accepted(scene, name))
    began = time.monotonic()
    return Recovery(scene.watch.first(uid, "first") - began)


def _accepted(scene: Scene, name: str) -> str:
    try:
        return scene.submit(name)
    except ApiException as error:
        if error.status != 409:
            raise
        return ""  # the one before is not gone yet


RESYNC, JOB = "30 s: the next resync", "the Job is made"
ROWS = [
    Row("child", "a process of the worker is killed in the midst of a look", "about 1 s", JOB, child_killed),
    Row("worker", "the whole worker is killed in the midst of a look, and started", RESYNC, JOB, worker_killed),
    Row("message", "a message is lost between Redis and a worker, which is started", RESYNC, JOB, message_lost),
    Row(
        "redis",
        f"Redis is killed with its data, {DOWN_SECONDS:.0f} s",
        "30 s after it is back",
        f"{JOB}, after it is back",
        redis_killed,
    ),
    Row(
        "redis-stage",
        f"a stage ends while Redis is away, {DOWN_SECONDS:.0f} s",
        "30 s after it is back",
        "the next stage's Job, after it is back",
        stage_ends_without_redis,
    ),
    Row(
        "api",
        f"the API server is unreachable for {UNREACHABLE_SECONDS:.0f} s, and a stage ends",
        "30 s after it is back",
        "the next stage's Job, after it is back",
        api_unreachable,
    ),
    Row("watcher", "the watcher is killed, a job submitted, the watcher started", "45 s", JOB, watcher_killed),
    Row(
        "copies",
        f"a message is delivered {COPIES} times more, late",
        "0; nothing changes",
        "all copies are done with, nothing has changed",
        delivered_again,
    ),
    Row("twin", "a job is deleted and made again by the same name", "0", "its Job is made, after the POST", made_again),
]
