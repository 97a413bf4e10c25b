"""Nodes that run pods as processes, and the scheduler that gives them out."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from typing import TypeVar

from tests.kube import eviction
from tests.kube.errors import ApiError
from tests.kube.objects import Key, Object, dig, is_deleting, key_of, with_condition
from tests.kube.options import DeleteOptions
from tests.kube.pod_run import Host, PodRun
from tests.kube.store import ADDED, DELETED, Change

T = TypeVar("T")
Call = Callable[[Callable[[], T]], T]
_SCHEDULER = "kube-scheduler"


class Kubelet:
    """All nodes of the cluster. What tests call goes through `call` onto the cluster's own thread."""

    def __init__(self, host: Host, call: Call[None], nodes: int = 1) -> None:
        self._host, self._api, self._call = host, host.api, call
        self._pods, self._nodes = host.api.kinds["pods"], host.api.kinds["nodes"]
        self._runs: dict[str, PodRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stops: set[asyncio.Task[None]] = set()
        self._held = ""
        self._lost: set[str] = set()
        self._turn = 0
        self._loop = asyncio.get_running_loop()
        self.active = True
        for number in range(nodes):
            self._add_node(f"node-{number}")
        host.api.store.listen(self._on_pod, self._pods.id)
        host.api.store.listen(self._on_node, self._nodes.id)
        host.api.store.listen(self._on_claim, ("", "persistentvolumeclaims"))

    # What tests do to it.

    def hold(self, message: str = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.") -> None:
        """From now on no pod finds a node; each is told why."""
        self._call(lambda: self._set_held(message))

    def release(self) -> None:
        """Pods find nodes again."""
        self._call(lambda: self._set_held(""))

    def evict(self, namespace: str, pod: str) -> None:
        self._call(lambda: eviction.evict(self._api, (namespace, pod)))

    def kill(self, namespace: str, pod: str, signal: int) -> None:
        """Sends the signal to the pod's processes."""
        self._call(lambda: self._run_of((namespace, pod)).signal(signal))

    def lose_node(self, node: str = "node-0", processes_go_on: bool = False) -> None:
        """Its kubelet says nothing any more; what ran there has stopped, or goes on unseen."""
        self._call(lambda: self._lose(node, processes_go_on))

    def log(self, uid: str, container: str) -> tuple[str, bool]:
        """Path of the log, and whether more may come."""
        run = self._runs.get(uid)
        path = self._host.root / "pods" / uid / f"{container}.log"
        return str(path), run is not None

    # What the cluster does with it.

    def resume(self) -> None:
        """Switched on again, it runs what waits."""
        self.active = True
        self._schedule_all()

    def _add_node(self, name: str) -> None:
        amount = {"cpu": "64", "memory": "512Gi", "pods": "1000", "nvidia.com/gpu": "64"}
        node = self._api.create(
            self._nodes, "", {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}
        )
        status: Object = {"capacity": amount, "allocatable": amount, "addresses": []}
        with_condition(status, "Ready", "True", "KubeletReady", "kubelet is posting ready status")
        self._api.change(self._nodes, key_of(node), lambda new: new.update(status=status), "kubelet", "status")

    def _set_held(self, message: str) -> None:
        self._held = message
        self._schedule_all()

    def _on_pod(self, change: Change) -> None:
        pod = change.object
        if change.type == DELETED:
            run = self._runs.get(pod["metadata"]["uid"])
            if run is not None and not run.is_silent:
                run.kill()
        elif self.active:
            self._loop.call_soon(self._attend, pod["metadata"]["uid"])

    def _on_claim(self, change: Change) -> None:
        if change.type == ADDED:
            self._loop.call_soon(self._schedule_all)

    def _schedule_all(self) -> None:
        for pod in self._api.store.listed(self._pods.id):
            self._attend(pod["metadata"]["uid"])

    def _attend(self, uid: str) -> None:
        pod = self._api.store.by_uid(uid)
        if pod is None or not self.active:
            return
        node = dig(pod, "spec", "nodeName")
        if not node:
            if not is_deleting(pod):
                self._schedule(pod)
        elif node in self._lost or self._api.store.get(self._nodes.id, ("", node)) is None:
            return
        elif uid not in self._runs and not is_deleting(pod) and dig(pod, "status", "phase") == "Pending":
            self._start(pod)
        elif is_deleting(pod):
            self._stop(pod)

    def _schedule(self, pod: Object) -> None:
        message = self._held or self._lacking(pod)
        if message:
            self._api.change(self._pods, key_of(pod), lambda new: _unschedulable(new, message), _SCHEDULER, "status")
            return
        nodes = [each for each in self._api.store.listed(self._nodes.id) if _is_selected(each, pod)]
        names = [each["metadata"]["name"] for each in nodes]
        present = [name for name in names if name not in self._lost]
        if not present:
            return
        self._turn += 1
        node = present[self._turn % len(present)]
        self._api.change(self._pods, key_of(pod), lambda new: new["spec"].update(nodeName=node), _SCHEDULER, "binding")
        self._api.change(self._pods, key_of(pod), _scheduled, _SCHEDULER, "status")

    def _lacking(self, pod: Object) -> str:
        if dig(pod, "spec", "schedulingGates"):
            return "Scheduling is blocked due to non-empty scheduling gates"
        nodes = self._api.store.listed(self._nodes.id)
        if nodes and not any(_is_selected(node, pod) for node in nodes):
            return (
                f"0/{len(nodes)} nodes are available: {len(nodes)} node(s) didn't match Pod's node affinity/selector."
            )
        for volume in pod["spec"].get("volumes") or []:
            claim = dig(volume, "persistentVolumeClaim", "claimName")
            key = pod["metadata"]["namespace"], claim
            if claim and self._api.store.get(("", "persistentvolumeclaims"), key) is None:
                return f'0/1 nodes are available: persistentvolumeclaim "{claim}" not found.'
        return ""

    def _start(self, pod: Object) -> None:
        run = PodRun(self._host, pod)
        self._runs[run.uid] = run
        task = self._loop.create_task(self._whole(run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _whole(self, run: PodRun) -> None:
        try:
            await run.run()
        finally:
            self._runs.pop(run.uid, None)

    def _stop(self, pod: Object) -> None:
        grace = float(pod["metadata"].get("deletionGracePeriodSeconds") or 0)
        run = self._runs.get(pod["metadata"]["uid"])
        if run is None:
            if grace:  # it has ended, or has never begun
                self._delete_now(pod)
        else:
            task = self._loop.create_task(run.stop(grace))
            self._stops.add(task)
            task.add_done_callback(self._stops.discard)

    def _delete_now(self, pod: Object) -> None:
        try:
            self._api.delete(self._pods, key_of(pod), DeleteOptions(grace=0, uid=pod["metadata"]["uid"]))
        except ApiError as error:
            if error.code not in (404, 409):  # someone else was faster
                raise

    def _run_of(self, key: Key) -> PodRun:
        return next(run for run in self._runs.values() if run.key == key)

    def _lose(self, node: str, processes_go_on: bool) -> None:
        self._lost.add(node)
        for run in list(self._runs.values()):
            pod = self._api.store.by_uid(run.uid)
            if pod is not None and pod["spec"].get("nodeName") == node:
                run.is_silent = True
                if not processes_go_on:
                    run.kill()
        self._api.change(self._nodes, ("", node), _unknown, "kube-controller-manager", "status")

    def _on_node(self, change: Change) -> None:
        """Pods of a node that is no more are given up, as the pod garbage collector does."""
        if change.type == DELETED:
            name = change.object["metadata"]["name"]
            self._lost.add(name)
            for pod in self._api.store.listed(self._pods.id):
                if pod["spec"].get("nodeName") == name:
                    self._loop.call_soon(self._give_up, key_of(pod))

    def _give_up(self, key: Key) -> None:
        if self._api.store.get(self._pods.id, key) is None:
            return
        self._api.change(self._pods, key, _orphaned, "kube-controller-manager", "status")
        self._delete_now(self._api.read(self._pods, key))

    async def close(self) -> None:
        """Nothing that it has started is left."""
        self.active = False
        for run in list(self._runs.values()):
            run.abandon()
        for task in self._stops:
            task.cancel()
        if tasks := [*self._tasks, *self._stops]:  # to the end, so that every process has been waited for
            await asyncio.wait(tasks, timeout=10)
        shutil.rmtree(self._host.root / "pods", ignore_errors=True)


def _is_selected(node: Object, pod: Object) -> bool:
    wanted = dig(pod, "spec", "nodeSelector", default={})
    return bool(wanted.items() <= node["metadata"].get("labels", {}).items())


def _unschedulable(pod: Object, message: str) -> None:
    with_condition(pod["status"], "PodScheduled", "False", "Unschedulable", message)


def _scheduled(pod: Object) -> None:
    with_condition(pod["status"], "PodScheduled", "True")


def _unknown(node: Object) -> None:
    with_condition(node["status"], "Ready", "Unknown", "NodeStatusUnknown", "Kubelet stopped posting node status.")


def _orphaned(pod: Object) -> None:
    if dig(pod, "status", "phase") not in ("Succeeded", "Failed"):
        pod["status"]["phase"] = "Failed"
    why = "PodGC: node no longer exists"
    with_condition(pod["status"], "DisruptionTarget", "True", "DeletionByPodGC", why)
