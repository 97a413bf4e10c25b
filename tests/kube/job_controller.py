"""The Job controller: makes pods, counts how they end, and says in conditions how it goes.

A Job that fails first gets `FailureTarget`, its other pods are deleted, and only when none of them does anything any
more it gets `Failed`; so with `SuccessCriteriaMet` and `Complete`. Each look at a Job is one step on the store.
"""

from __future__ import annotations

import asyncio

from tests.kube import job_pods, job_progress
from tests.kube.errors import ApiError
from tests.kube.job_failure import FAIL_JOB, IGNORE, judge
from tests.kube.objects import (
    FOREGROUND,
    Key,
    Object,
    controller_of,
    copy,
    dig,
    finalizers,
    is_deleting,
    is_true,
    key_of,
    seconds_since,
    timestamp,
    with_condition,
)
from tests.kube.options import DeleteOptions, Options
from tests.kube.recorder import record
from tests.kube.store import Change
from tests.kube.verbs import Api

_MANAGER = "kube-controller-manager"


class JobController:
    """`backoff` is how long after a failure the next pod comes, doubled each time; a real cluster takes 10 seconds."""

    def __init__(self, api: Api, backoff: float = 0.2) -> None:
        self._api, self._backoff = api, backoff
        self._jobs, self._pods = api.kinds["jobs.batch"], api.kinds["pods"]
        self._due: set[Key] = set()
        self._failed_at: dict[str, float] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._loop = asyncio.get_running_loop()
        self.active = True
        api.store.listen(self._on_job, self._jobs.id)
        api.store.listen(self._on_pod, self._pods.id)

    def stop(self) -> None:
        self.active = False
        for timer in self._timers.values():
            timer.cancel()

    def resume(self) -> None:
        """Switched on again, it looks at everything."""
        self.active = True
        self._due |= {key_of(job) for job in self._api.store.listed(self._jobs.id)}
        self._loop.call_soon(self._work)

    def _on_job(self, change: Change) -> None:
        self._look_at(key_of(change.object))

    def _on_pod(self, change: Change) -> None:
        owner = controller_of(change.object)
        if owner is not None and owner["kind"] == "Job":
            self._look_at((change.object["metadata"]["namespace"], owner["name"]))
        elif owner is None and change.before is not None and self.active:  # it has been left by a Job that is gone
            self._loop.call_soon(self._release, change.object)

    def _look_at(self, key: Key) -> None:
        if not self._due and self.active:
            self._loop.call_soon(self._work)
        self._due.add(key)

    def _look_later(self, key: Key, seconds: float) -> None:
        if key in self._timers:
            self._timers[key].cancel()
        self._timers[key] = self._loop.call_later(max(seconds, 0.01), self._look_at, key)

    def _work(self) -> None:
        if self.active:
            due, self._due = self._due, set()
            for key in due:
                self._sync(key)

    def _sync(self, key: Key) -> None:
        job = self._api.store.get(self._jobs.id, key)
        pods = [pod for pod in self._api.store.listed(self._pods.id, key[0]) if _names(pod, key[1])]
        own = [pod for pod in pods if job is not None and job_pods.belongs_to(pod, job)]
        if job is None or is_deleting(job):
            for pod in pods:
                self._release(pod)
            return
        if dig(job, "spec", "managedBy", default="kubernetes.io/job-controller") != "kubernetes.io/job-controller":
            return
        for pod in pods:
            if pod not in own:
                self._release(pod)
        if is_true(job, "Complete") or is_true(job, "Failed"):
            self._after_the_end(job, own)
        else:
            self._advance(job, own)

    def _after_the_end(self, job: Object, pods: list[Object]) -> None:
        for pod in pods:
            self._release(pod)
        ttl = job["spec"].get("ttlSecondsAfterFinished")
        if ttl is None:
            return
        ended = next(one for one in job["status"]["conditions"] if one["type"] in ("Complete", "Failed"))
        left = ttl - seconds_since(ended["lastTransitionTime"])
        if left > 0:
            self._look_later(key_of(job), left)
        else:
            self._api.delete(self._jobs, key_of(job), DeleteOptions(propagation=FOREGROUND))

    def _advance(self, job: Object, pods: list[Object]) -> None:
        status = copy(job.get("status") or {})
        status.setdefault("uncountedTerminatedPods", {})
        if job["spec"].get("suspend") and not is_true({"status": status}, "FailureTarget"):
            self._suspend(job, status, pods)
        else:
            self._go_on(job, status)
            failed_before = status.get("failed", 0)
            self._count(job, status, pods)
            self._decide(job, status, pods, failed_before)
        pods = self._present(pods)
        job_progress.tally(status, pods)
        job_progress.finish(job, status, pods)
        self._write(job, status)

    def _write(self, job: Object, status: Object) -> None:
        if status != job.get("status"):
            self._api.change(self._jobs, key_of(job), lambda new: new.update(status=status), _MANAGER, "status")

    def _suspend(self, job: Object, status: Object, pods: list[Object]) -> None:
        for pod in pods:
            if job_pods.is_active(pod):
                self._delete(job, pod)
        self._count(job, status, pods)
        if not is_true(job, "Suspended"):
            with_condition(status, "Suspended", "True", "JobSuspended", "Job suspended")
            record(self._api, job, "Suspended", "Job suspended", "job-controller")
        status.pop("startTime", None)

    def _go_on(self, job: Object, status: Object) -> None:
        if is_true(job, "Suspended"):
            with_condition(status, "Suspended", "False", "JobResumed", "Job resumed")
            record(self._api, job, "Resumed", "Job resumed", "job-controller")
            status["startTime"] = timestamp()
        status.setdefault("startTime", timestamp())

    def _count(self, job: Object, status: Object, pods: list[Object]) -> None:
        """Takes every ended pod into account once, and then lets it go."""
        done = job_pods.from_ranges(status.get("completedIndexes", ""))
        for pod in pods:
            if not job_pods.is_uncounted(pod):
                continue
            if job_pods.phase(pod) == "Succeeded":
                if not job_pods.is_indexed(job):
                    status["succeeded"] = status.get("succeeded", 0) + 1
                elif job_pods.index_of(pod) < job["spec"]["completions"]:
                    done.add(job_pods.index_of(pod))
            elif job_pods.has_failed(job, pod):
                self._count_failure(job, status, pod)
            else:
                continue
            self._release(pod)
        if job_pods.is_indexed(job) and done:
            status["completedIndexes"], status["succeeded"] = job_pods.as_ranges(done), len(done)

    def _count_failure(self, job: Object, status: Object, pod: Object) -> None:
        verdict = judge(job, pod)
        if verdict.action != IGNORE:
            status["failed"] = status.get("failed", 0) + 1
            self._failed_at[job["metadata"]["uid"]] = self._loop.time()
        if verdict.action == FAIL_JOB and not is_true({"status": status}, "FailureTarget"):
            with_condition(status, "FailureTarget", "True", "PodFailurePolicy", verdict.message)

    def _decide(self, job: Object, status: Object, pods: list[Object], failed_before: int) -> None:
        """Has it failed, has it succeeded, or which pods are missing?"""
        spec, state = job["spec"], {"status": status}
        if not is_true(state, "FailureTarget") and not is_true(state, "SuccessCriteriaMet"):
            failed = status.get("failed", 0)
            if failed > failed_before and failed > spec["backoffLimit"]:
                why = "Job has reached the specified backoff limit"
                with_condition(status, "FailureTarget", "True", "BackoffLimitExceeded", why)
            elif self._is_late(job, status):
                why = "Job was active longer than specified deadline"
                with_condition(status, "FailureTarget", "True", "DeadlineExceeded", why)
            elif job_progress.is_successful(job, status, pods):
                why = "Reached expected number of succeeded pods"
                with_condition(status, "SuccessCriteriaMet", "True", "CompletionsReached", why)
        if is_true(state, "FailureTarget") or is_true(state, "SuccessCriteriaMet"):
            for pod in self._present(pods):
                if job_pods.is_active(pod):
                    self._delete(job, pod)
                self._release(pod)
        else:
            self._fill(job, status, pods)

    def _is_late(self, job: Object, status: Object) -> bool:
        limit = job["spec"].get("activeDeadlineSeconds")
        if limit is None:
            return False
        left = float(limit - seconds_since(status["startTime"]))
        if left > 0:
            self._look_later(key_of(job), left + 0.05)
        return left <= 0

    def _fill(self, job: Object, status: Object, pods: list[Object]) -> None:
        """Makes the pods that are missing, or deletes those that are too many."""
        spec = job["spec"]
        waits = job_pods.waits_for_the_end(job)
        here = [pod for pod in pods if job_pods.is_active(pod) or (waits and job_pods.is_terminating(pod))]
        room = spec["parallelism"] - len(here)
        if room <= 0 or (pause := self._pause(job, status)) > 0:
            if room < 0:
                for pod in [pod for pod in here if job_pods.is_active(pod)][room:]:
                    self._delete(job, pod)
            elif room > 0:
                self._look_later(key_of(job), pause)
            return
        for index in job_progress.missing(job, status, here, room):
            body = job_pods.new_pod(job, index)
            try:
                self._api.create(self._pods, job["metadata"]["namespace"], body, Options(manager=_MANAGER))
            except ApiError as error:
                why = f"Error creating: {error.message}"
                record(self._api, job, "FailedCreate", why, "job-controller", warns=True)
                self._look_later(key_of(job), 1.0)
                return
            record(self._api, job, "SuccessfulCreate", f"Created pod: {body['metadata']['name']}", "job-controller")

    def _pause(self, job: Object, status: Object) -> float:
        last = self._failed_at.get(job["metadata"]["uid"])
        if last is None:
            return 0.0
        wait = self._backoff * 2 ** min(max(status.get("failed", 1) - 1, 0), 6)
        return float(last + wait - self._loop.time())

    def _present(self, pods: list[Object]) -> list[Object]:
        """The pods as they are now."""
        return [now for pod in pods if (now := self._api.store.by_uid(pod["metadata"]["uid"])) is not None]

    def _delete(self, job: Object, pod: Object) -> None:
        self._api.delete(self._pods, key_of(pod))
        record(self._api, job, "SuccessfulDelete", f"Deleted pod: {pod['metadata']['name']}", "job-controller")

    def _release(self, pod: Object) -> None:
        now = self._api.store.by_uid(pod["metadata"]["uid"])
        if now is not None and job_pods.TRACKING in finalizers(now):
            self._api.change(self._pods, key_of(pod), _untracked, _MANAGER)


def _names(pod: Object, job: str) -> bool:
    owner = controller_of(pod)
    return owner is not None and owner["kind"] == "Job" and owner["name"] == job


def _untracked(pod: Object) -> None:
    pod["metadata"]["finalizers"] = [each for each in finalizers(pod) if each != job_pods.TRACKING]
