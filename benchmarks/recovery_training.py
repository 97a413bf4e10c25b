"""Rows in which a real trainer is disturbed: what is lost is counted in steps that have to be done again.

The model is tiny and so is a step; starting Python and torch twice (torchrun, trainer) is nearly all of the time to the
first step of the next attempt.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from kubernetes import client as kube

from benchmarks.recovery_scene import Recovery, Row, Scene
from tests.kube.objects import Object
from tests.kube.processes import marked
from tests.training_jobs import make_folder, stage
from training import commit, json_log

EVERY_STEPS, AT_LEAST = 50, 80
LOST_SECONDS, GRACE_SECONDS = 5, 1
BACKOFF_SECONDS = 10
NODES = 4
NAME, STAGE = "train", "align"


def train(scene: Scene, **more: Any) -> str:
    """A job that trains for ever; its uid. What it reads has to be in its folder before its first pod."""
    template = scene.system.folder / "template"
    if not template.exists():
        make_folder(template)
    optimizer = {"steps": 1_000_000, "batch": 8}
    made = stage(STAGE, text={"rowPositions": 96}, learn={"projection": 1.0}, optimizer=optimizer)
    made |= {"checkpoint": {"everySteps": EVERY_STEPS, "keep": 2, "graceSeconds": 30}, **more}
    uid = scene.system.submit(NAME, made, suspend=True)["metadata"]["uid"]
    scene.wait(lambda: scene.system.status(NAME).get("phase") == "Suspended")
    shutil.copytree(template, scene.system.output(NAME), dirs_exist_ok=True)
    scene.system.edit(NAME, suspend=False)
    return str(uid)


def steps(scene: Scene, attempt: int) -> list[dict[str, Any]]:
    """What that attempt has logged."""
    log = scene.system.output(NAME) / STAGE / "metrics.jsonl"
    lines = json_log.read(log) if log.exists() else ()
    return [line for line in lines if line["kind"] == "step" and line["attempt"] == attempt]


def disturb(scene: Scene, uid: str, attempt: int, event: Callable[[Object], None]) -> Recovery:
    """Does `event` to the pod of an attempt that trains, and waits until the next one does."""
    scene.wait(lambda: len(steps(scene, attempt)) > AT_LEAST, f"attempt {attempt} trains")
    pod = scene.pod(NAME, STAGE, attempt)
    began, at = time.monotonic(), time.time()
    event(pod)
    made = scene.watch.first(uid, STAGE, attempt + 1) - began
    first = scene.wait(lambda: steps(scene, attempt + 1), "the next attempt trains")[0]
    last = steps(scene, attempt)[-1]["step"]
    return Recovery(made, datetime.fromisoformat(first["time"]).timestamp() - at, last - first["step"] + 1)


def _again(scene: Scene, number: int, event: Callable[[Object], None], **more: Any) -> Recovery:
    """The same job at each event, and so a higher attempt."""
    uid = train(scene, **more) if number == 0 else scene.system.job(NAME)["metadata"]["uid"]
    return disturb(scene, uid, number + 1, event)


def evicted(scene: Scene, number: int) -> Recovery:
    return _again(scene, number, lambda pod: scene.system.cluster.kubelet.evict(*_key(pod)))


def evicted_at_once(scene: Scene, number: int) -> Recovery:
    """As when a node runs out of memory: killed with hardly a moment of grace."""

    def event(pod: Object) -> None:
        scene.system.cluster.kubelet.evict(*_key(pod))
        scene.system.cluster.kubelet.kill(*_key(pod), signal.SIGKILL)

    return _again(scene, number, event)


def node_lost(scene: Scene, number: int) -> Recovery:
    """The eviction is what Kubernetes does when the toleration of the pod is over; here at once."""

    def event(pod: Object) -> None:
        scene.system.cluster.kubelet.lose_node(pod["spec"]["nodeName"])
        scene.system.cluster.kubelet.evict(*_key(pod))

    if number == 0:
        _add_nodes(scene)
    checkpoint = {"everySteps": EVERY_STEPS, "keep": 2, "graceSeconds": GRACE_SECONDS}
    return _again(scene, number, event, checkpoint=checkpoint)


def _add_nodes(scene: Scene) -> None:
    core: Any = kube.CoreV1Api(scene.system.api)
    ready = {"type": "Ready", "status": "True"}
    for more in range(1, NODES):
        core.create_node({"metadata": {"name": f"node-{more}"}})
        core.patch_node_status(f"node-{more}", {"status": {"conditions": [ready]}})


def rank_crashes(scene: Scene, number: int) -> Recovery:
    def event(pod: Object) -> None:
        os.kill(_rank(pod, 1), signal.SIGKILL)

    retry = {"limit": 100, "backoff": {"initial": BACKOFF_SECONDS, "max": BACKOFF_SECONDS}}
    return _again(scene, number, event, parallelism={"procsPerNode": 2}, retry=retry)


def _rank(pod: Object, rank: int) -> int:
    """The trainer's process of that rank."""
    for pid in marked(pod["metadata"]["uid"]):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in variables and b"training.run" in command:
            return pid
    raise SystemExit(f"pod {pod['metadata']['name']} has no process of rank {rank}")


def job_deleted(scene: Scene, number: int) -> Recovery:
    """As `kubectl delete job` does it."""
    batch = kube.BatchV1Api(scene.system.api)

    def event(pod: Object) -> None:
        name = pod["metadata"]["ownerReferences"][0]["name"]
        batch.delete_namespaced_job(name, scene.system.namespace, propagation_policy="Background")

    return _again(scene, number, event)


def deleted(scene: Scene, number: int) -> Recovery:
    """The job itself: until it, its Jobs and its pods are gone. Lost are steps after its last checkpoint."""
    train(scene)
    scene.wait(lambda: len(steps(scene, 1)) > AT_LEAST, "it trains")
    folder, began = scene.system.output(NAME) / STAGE, time.monotonic()
    scene.system.delete(NAME)
    scene.wait(lambda: not _left(scene), "nothing is left")
    took = time.monotonic() - began
    saved = commit.newest(folder / "checkpoints")
    last = [line["step"] for line in json_log.read(folder / "metrics.jsonl") if line["kind"] == "step"][-1]
    return Recovery(took, repeated=last - (saved.step if saved else 0))


def _left(scene: Scene) -> int:
    cluster = scene.system.cluster
    kinds = (("ziya.dev", "trainingjobs"), ("batch", "jobs"), ("", "pods"))
    return cluster.call(lambda: sum(len(cluster.api.store.listed(kind)) for kind in kinds))


def _key(pod: Object) -> tuple[str, str]:
    return pod["metadata"]["namespace"], pod["metadata"]["name"]


INTERVAL = f"{EVERY_STEPS} steps between checkpoints"
NEXT = "the next attempt's Job"
LOST = {"ZIYA_OPERATOR_NODE_LOST_SECONDS": str(LOST_SECONDS)}
ROWS = [
    Row("evicted", "a pod is evicted", "grace of 45 s; the current step", NEXT, evicted, goes_on=True),
    Row(
        "killed",
        "a pod is evicted without time to save",
        f"at once; {INTERVAL}",
        NEXT,
        evicted_at_once,
        goes_on=True,
    ),
    Row(
        "node",
        f"a node is lost, given up after {LOST_SECONDS} s instead of 600",
        f"grace of {GRACE_SECONDS + 15} s + {LOST_SECONDS} s + 30 s; {INTERVAL}",
        f"{NEXT}, the toleration of 60 s not counted",
        node_lost,
        goes_on=True,
        settings=LOST,
    ),
    Row(
        "rank",
        "one of two ranks crashes",
        f"backoff, at most {BACKOFF_SECONDS} s; {INTERVAL}",
        NEXT,
        rank_crashes,
        goes_on=True,
    ),
    Row(
        "job",
        "the Job is deleted by hand",
        f"its pod's grace of 45 s + 30 s; {INTERVAL}",
        NEXT,
        job_deleted,
        goes_on=True,
    ),
    Row("deleted", "the TrainingJob is deleted while it trains", "grace of 45 s; none", "all of it is gone", deleted),
]
