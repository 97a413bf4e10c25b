"""What the rows of the recovery benchmark share: the whole operator, trainers that only wait, moments and processes.

A trainer that only waits stands in for the real one where training is not the point: `PYTHONSAFEPATH` keeps the pod's
`python -m training.launch` from finding the repository, and `PYTHONPATH` lets it find a package of that name that runs
until it is told to end, and ends with code 75 on SIGTERM, as the trainer does when it has saved.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil
import redis

from benchmarks.job_watch import JobWatch
from benchmarks.operator_production import stage
from services.operator.children import ATTEMPT, JOB, JOB_UID, STAGE
from tests.kube.faults import Fault
from tests.operator_objects import GROUP, PLURAL
from tests.operator_programs import ACCOUNTS
from tests.operator_system import SYSTEM, OperatorSystem

WAITING = """\
import signal, sys, time
from pathlib import Path

signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
word = lambda name: sys.argv[sys.argv.index(name) + 1]
while not (Path(word("--output")) / (word("--stage") + ".done")).exists():
    time.sleep(0.02)
"""
PATIENCE = 120.0
JUST_NOW = 4.0


@dataclass(frozen=True)
class Recovery:
    """One event: seconds from it to what its row names; where something trains, also to the first step of the next
    attempt, and how many steps were done again."""

    seconds: float
    first_step: float | None = None
    repeated: int | None = None


@dataclass(frozen=True)
class Row:
    """`provoke` does the event of that number, counted from 0; unless `goes_on`, its jobs are removed after it.

    `settings` differ from production's."""

    name: str
    event: str
    bound: str
    until: str
    provoke: Callable[[Scene, int], Recovery]
    goes_on: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Resyncs(Fault):
    """A fault that does no harm: it sees when the watcher last listed all jobs (a reading of time.monotonic)."""

    verb: str = "list"
    resource: str = PLURAL
    account: str = field(default_factory=lambda: _account("watcher"))
    last: float = field(default=float("-inf"), init=False)

    def fits(self, verb: str, resource: str, account: str) -> bool:
        found = super().fits(verb, resource, account)
        if found:
            self.last = time.monotonic()
        return found


@dataclass(frozen=True)
class Scene:
    """A running operator, and a watch on the Jobs it makes."""

    system: OperatorSystem
    watch: JobWatch
    resyncs: Resyncs

    def submit(self, name: str, *stages: str) -> str:
        """A job whose stages only wait; its uid."""
        package = self.system.folder / "waiting" / "training"
        if not package.exists():
            package.mkdir(parents=True)
            (package / "__init__.py").touch()
            (package / "launch.py").write_text(WAITING)
        env = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(package.parent)}
        pod = {"env": [{"name": key, "value": value} for key, value in env.items()]}
        made = self.system.submit(name, *(stage(one) for one in stages or ("first",)), pod=pod)
        return str(made["metadata"]["uid"])

    def run(self, name: str, *stages: str) -> str:
        """The same, until its first stage runs."""
        uid = self.submit(name, *stages)
        self.wait(lambda: self.system.status(name).get("phase") == "Running")
        return uid

    def clear(self) -> None:
        """Deletes all jobs, and waits until nothing of them is left."""
        place = (*GROUP, self.system.namespace, PLURAL)
        for job in self.system.objects.list_namespaced_custom_object(*place)["items"]:
            self.system.delete(job["metadata"]["name"])
        self.wait(lambda: not self.system.objects.list_namespaced_custom_object(*place)["items"], "no job")

    def end_stage(self, name: str, stage: str) -> None:
        """Its pod ends with code 0, and the API server knows it."""
        self.tell_to_end(name, stage)
        self.wait(lambda: self.pod(name, stage)["status"].get("phase") == "Succeeded", f"the end of {name}/{stage}")

    def tell_to_end(self, name: str, stage: str) -> None:
        found = self.pod(name, stage)
        folder = f"{name}-{found['metadata']['labels'][JOB_UID].replace('-', '')[:8]}"
        claim = self.system.cluster.claim_folder(self.system.namespace, self.system.claim)
        (claim / folder).mkdir(exist_ok=True)
        (claim / folder / f"{stage}.done").touch()

    def pod(self, name: str, stage: str, attempt: int = 1) -> dict[str, Any]:
        """The first of an attempt, past the API, which may be unreachable; empty while there is none."""
        cluster = self.system.cluster
        found = cluster.call(lambda: cluster.api.store.listed(("", "pods")))
        wanted = {JOB: name, STAGE: stage, ATTEMPT: str(attempt)}
        return next((one for one in found if wanted.items() <= (one["metadata"].get("labels") or {}).items()), {})

    def wait(self, reached: Callable[[], Any], what: str = "") -> Any:
        """The first true answer."""
        end = time.monotonic() + PATIENCE
        while not (answer := reached()):
            if time.monotonic() > end:
                raise TimeoutError(f"not within {PATIENCE:.0f} s: {what}\n{self._jobs()}\n{self.system.story()}")
            time.sleep(0.01)
        return answer

    # Moments.

    def after_resync(self) -> None:
        """Waits until one has been: an event now has a long way to the next."""
        self.wait(lambda: time.monotonic() - self.resyncs.last < JUST_NOW, "a resync")
        time.sleep(1.0)

    def hold(self, verb: str, resource: str, program: str) -> Fault:
        """The next such request, and no other, is not answered for a minute. `met` tells when it has come."""
        return self.system.cluster.faults.add(Fault(verb, resource, _account(program), times=1, latency=60.0))

    def _jobs(self) -> str:
        place = (*GROUP, self.system.namespace, PLURAL)
        jobs = self.system.objects.list_namespaced_custom_object(*place)["items"]
        return json.dumps([job.get("status") for job in jobs], indent=1)

    # Processes.

    def restart(self, name: str) -> None:
        """As a Deployment does: at once, in place of the one that was killed."""
        self.system.kill(name)
        self.system.start(name)

    def freeze(self, number: signal.Signals = signal.SIGSTOP) -> None:
        """The worker with all its processes; SIGCONT lets it go on."""
        os.killpg(self.system.programs["worker"].pid, number)

    def wait_for_worker(self) -> None:
        """Until it has carried out a message to itself."""
        beat = self.system.folder / "heartbeat"
        before = beat.stat().st_mtime_ns if beat.exists() else 0
        self.wait(lambda: beat.exists() and beat.stat().st_mtime_ns != before, "a heartbeat")

    def busy_child(self) -> psutil.Process:
        """The worker's process that has a connection to the API server: in a fresh worker, the one that looks."""
        port = int(self.system.cluster.url.rpartition(":")[2])
        children = psutil.Process(self.system.programs["worker"].pid).children(recursive=True)
        return next(one for one in children if _speaks_to(one, port))

    def redis(self) -> redis.Redis:
        link: redis.Redis = redis.Redis.from_url(self.system.redis.url)
        return link


def _account(program: str) -> str:
    return f"system:serviceaccount:{SYSTEM}:{ACCOUNTS[program]}"


def _speaks_to(process: psutil.Process, port: int) -> bool:
    return any(one.raddr and one.raddr.port == port for one in process.connections())
