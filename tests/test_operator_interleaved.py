"""Two workers and a cluster in any order: messages lost, doubled and late, a death between any two API calls.

Workers are greenlets that give way before every call, so that hypothesis decides who goes next, and who dies there.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import greenlet
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.operator.apply import Hands
from services.operator.cluster import Conflict
from services.operator.gather import gather
from services.operator.manifests import Surroundings
from services.operator.plan import plan
from services.operator.resource import Key
from services.operator.resting import LONGEST_SECONDS, rests
from tests.operator_model import KEY, Model, training_job

WHERE = Surroundings(image="trainer", account="trainer", rendezvous_port=29500)
DONE = {"code": 0, "step": 8, "metrics": {"x": 1.0}, "artifact": {"path": "a/model", "digest": "sha256:1"}}
STAGES = [
    {"name": "align", "type": "align", "parallelism": {"nodes": 2}, "retry": {"limit": 2, "backoff": {"initial": 1}}},
    {"name": "merge", "type": "merge"},
    {"name": "chat", "type": "chat", "retry": {"limit": 1, "disruptionLimit": 1, "backoff": {"initial": 1}}},
    {"name": "promote", "type": "promote"},
]
ENDS = ["done", "crash", "evicted", "saved", "killed", "rejected"]
WRITES = ["patch status", "create job", "patch job", "delete job"]
TURNS = [*ENDS, "suspend", "resume"]
PROMOTION = {"inferenceService": "model", "steps": [50, 100], "stepSeconds": 10, "readySeconds": 40}


def look(model: Model) -> None:
    """What the task `reconcile` does."""
    cluster: Any = model
    hands = Hands(cluster, WHERE, lambda job, piece: None)
    for _ in range(5):
        world = gather(cluster, Key(*KEY))
        if world is None:
            return
        made = plan(world, model.now)
        try:
            hands.apply(world, made)
        except Conflict:
            continue
        if rests(world, made):
            later = min(made.wake or datetime.max.replace(tzinfo=UTC), model.now + timedelta(seconds=LONGEST_SECONDS))
            again = plan(world, later - timedelta(seconds=1))
            assert (again.status, again.actions) == (world.job.status, ()), "passed over by the resync, and not at rest"
        return


class Died(greenlet.GreenletExit):
    """SIGKILL."""


class Workers(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.model = Model(training_job(*STAGES, promotion=PROMOTION), self._give_way)
        # One that is there already: kserve, whose types make a new one, cannot share a process with tritonclient.
        self.model.inference = {
            "metadata": {"generation": 1},
            "spec": {"predictor": {"model": {"storageUri": "pvc://results/old"}}},
        }
        self.home = greenlet.getcurrent()
        self.workers: list[greenlet.greenlet | None] = [None, None]
        self.next_call = ["", ""]
        self.ended: str | None = None
        self.counted: dict[str, tuple[int, int, int]] = {}

    def _give_way(self, call: str) -> None:
        current = greenlet.getcurrent()
        if current in self.workers:
            self.next_call[self.workers.index(current)] = call
        if current is not self.home:
            self.home.switch()

    @rule(who=st.integers(0, 1))
    def message(self, who: int) -> None:
        """Whether it is new, a repeat, or late: there is no difference. A busy worker does not take it: it is lost."""
        if self.workers[who] is None:
            self.workers[who] = greenlet.greenlet(lambda: look(self.model), parent=self.home)
            self._go(who)

    @initialize(past=st.lists(st.sampled_from(ENDS), max_size=5))
    def has_a_past(self, past: list[str]) -> None:
        """Otherwise most stories end before anything has happened."""
        for how in past:
            self.undisturbed(how, slow=False)

    @rule(how=st.sampled_from(ENDS), slow=st.booleans())
    def undisturbed(self, how: str, slow: bool) -> None:
        """A third worker, quick enough that nothing happens meanwhile, and a cluster that does its part, or is slow."""
        for _ in range(4):
            look(self.model)
            self.model.start_pods()
        self.pod_ends(how, 0)
        if how == "done":
            succeed_pods(self.model)
        look(self.model)
        if not slow:
            self.kubelet_stops()
        self.model.kserve_works()
        self.model.wait(3)
        look(self.model)

    @rule(who=st.integers(0, 1), before=st.sampled_from(WRITES), meanwhile=st.lists(st.sampled_from(TURNS), max_size=3))
    def is_late(self, who: int, before: str, meanwhile: list[str]) -> None:
        """It has read and decided, and perhaps written, when other things happen; then it does what it meant to do."""
        self.message(who)
        while self.workers[who] is not None and self.next_call[who] != before:
            self._go(who)
        for turn in meanwhile:
            if turn in ("suspend", "resume"):
                self.model.user_edits(suspend=turn == "suspend")
            else:
                self.undisturbed(turn, slow=False)
        self.goes_on(who, 10)

    @precondition(lambda self: any(self.workers))
    @rule(who=st.integers(0, 1), calls=st.integers(1, 10))
    def goes_on(self, who: int, calls: int) -> None:
        for _ in range(calls):
            if self.workers[who] is not None:
                self._go(who)

    @precondition(lambda self: any(self.workers))
    @rule(who=st.integers(0, 1))
    def dies(self, who: int) -> None:
        worker = self.workers[who]
        if worker is not None:
            worker.throw(Died)
            self.workers[who] = None

    def _go(self, who: int) -> None:
        worker = self.workers[who]
        assert worker is not None
        worker.switch()
        if worker.dead:
            self.workers[who] = None

    @rule(seconds=st.sampled_from([0.5, 3, 30]))
    def time_passes(self, seconds: float) -> None:
        self.model.wait(seconds)

    @rule()
    def cluster_works(self) -> None:
        self.model.start_pods()
        self.model.settle_jobs()

    @rule()
    def kubelet_stops(self) -> None:
        self.model.kubelet_stops()
        self.model.settle_jobs()

    @rule(how=st.sampled_from(ENDS), which=st.integers(0, 3))
    def pod_ends(self, how: str, which: int) -> None:
        running = [name for name, pod in self.model.pods.items() if pod["status"]["phase"] == "Running"]
        if not running:
            return
        name = running[which % len(running)]
        if how == "done":
            self.model.end_pod(name, 0, DONE)
        elif how == "crash":
            self.model.end_pod(name, 1, {"code": 1, "reason": "CUDA", "step": len(self.model.ran)})
        elif how == "rejected":
            self.model.end_pod(name, 42, {"code": 42, "reason": "no such data"})
        elif how == "saved":
            self.model.end_pod(name, 75, {"code": 75, "reason": "stopped", "step": 4})
        else:
            self.model.end_pod(name, 137, evicted=how == "evicted")
        self.model.settle_jobs()

    @rule(ready=st.booleans())
    def kserve_works(self, ready: bool) -> None:
        self.model.kserve_works(ready=ready)

    @rule()
    def job_is_deleted_by_hand(self) -> None:
        for name, job in [*self.model.jobs.items()][:1]:
            self.model.delete_job("default", name, job["metadata"]["uid"])

    @rule(suspend=st.booleans())
    def user_suspends(self, suspend: bool) -> None:
        self.model.user_edits(suspend=suspend)

    @precondition(lambda self: len(self.model.ran) > 2)
    @rule()
    def user_deletes(self) -> None:
        self.model.user_deletes()

    @invariant()
    def one_attempt_runs(self) -> None:
        """A Job may run if it is not suspended, and does until it is over or gone."""
        live = [
            name
            for name, job in self.model.jobs.items()
            if not job["spec"]["suspend"]
            and not (ended(job) and all(pod["status"]["phase"] != "Running" for pod in self._pods(name)))
        ]
        assert len(live) <= 1, live

    def _pods(self, job: str) -> list[dict[str, Any]]:
        return [pod for pod in self.model.pods.values() if pod["job"] == job]

    @invariant()
    def no_number_is_used_twice(self) -> None:
        numbers = [(stage, attempt) for stage, attempt, _ in self.model.ran]
        assert len(numbers) == len(set(numbers)), numbers

    @invariant()
    def intent_comes_before_deed(self) -> None:
        assert not self.model.unsaid

    @invariant()
    def what_is_counted_only_grows(self) -> None:
        for state in self._states():
            counted = state.get("attempt", 0), state.get("restarts", 0), state.get("disruptions", 0)
            before = self.counted.get(state["name"], (0, 0, 0))
            assert all(now >= then for now, then in zip(counted, before, strict=True)), (before, state)
            assert counted[0] >= counted[1] + counted[2], state
            self.counted[state["name"]] = counted

    @invariant()
    def stages_keep_their_order(self) -> None:
        states = self._states()
        for before, after in itertools.pairwise(states):
            assert not after.get("attempt") or before["phase"] == "Succeeded", states

    @invariant()
    def the_end_is_final(self) -> None:
        phase = ((self.model.job or {}).get("status") or {}).get("phase")
        assert self.ended is None or self.model.job is None or phase == self.ended
        if phase in ("Complete", "Failed"):
            self.ended = phase

    def _states(self) -> list[dict[str, Any]]:
        return list(((self.model.job or {}).get("status") or {}).get("stages", []))

    def teardown(self) -> None:
        """Whatever happened, one worker that is left alone brings it to an end, and nothing is left behind."""
        for worker in self.workers:
            if worker is not None:
                worker.throw(Died)
        self.workers = [None, None]
        self.model.user_edits(suspend=False)
        until(self.model, lambda: self.model.job is None or self._phase() in ("Complete", "Failed"))
        until(self.model, lambda: not [name for name, job in self.model.jobs.items() if not ended(job)])
        self.the_end_is_final()
        self.model.user_deletes()
        until(self.model, lambda: self.model.job is None)
        self.model.kubelet_stops()
        assert not self.model.jobs

    def _phase(self) -> str:
        assert self.model.job is not None
        return str((self.model.job.get("status") or {}).get("phase"))


def ended(job: dict[str, Any]) -> bool:
    return any(one["type"] in ("Complete", "Failed") for one in job["status"].get("conditions", []))


def succeed_pods(model: Model) -> None:
    for name, pod in model.pods.items():
        if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]:
            model.end_pod(name, 0, DONE)


def until(model: Model, reached: Callable[[], bool]) -> None:
    """Resync after resync in a cluster where everything succeeds."""
    for _ in range(200):
        if reached():
            return
        look(model)
        model.start_pods()
        succeed_pods(model)
        model.settle_jobs()
        model.kubelet_stops()
        model.settle_jobs()
        model.kserve_works()
        model.wait(30)
    pytest.fail(json.dumps(model.job, indent=1))


Workers.TestCase.settings = settings(
    max_examples=300, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestWorkers = pytest.mark.timeout(400)(Workers.TestCase)
