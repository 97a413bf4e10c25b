"""The tiny job from `kubectl apply` to its promoted model, undisturbed, and with each part killed at a random moment.

A kill may cost time and attempts. It may not change a bit of what any stage has learnt.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kubernetes import client

from tests.kube.processes import marked
from tests.operator_system import NAMESPACE, OperatorSystem
from tests.training_jobs import weights
from tests.whole_job import SERVED, STEPS, TRAINED, Story, carry_through

pytestmark = [pytest.mark.xdist_group("operator-kills"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Nobody is killed."""
    with OperatorSystem(tmp_path_factory.mktemp("quiet")) as system:
        story = carry_through(system, "tiny")
        story.job["served"] = system.inference(SERVED)
        return story


def test_the_tiny_job_trains_shows_its_progress_and_is_promoted(quiet: Story) -> None:
    assert [one["phase"] for one in quiet.job["status"]["stages"]] == ["Succeeded"] * 6
    for name in TRAINED:
        assert quiet.stage(name)["attempt"] == 1
        assert quiet.stage(name)["artifact"]["step"] == STEPS
        assert quiet.stage(name)["progress"]["total"] == STEPS
    assert {stage for stage, step in quiet.shown if re.fullmatch(rf"\d+/{STEPS}", step)} == {*TRAINED}
    model = quiet.job["served"]["spec"]["predictor"]["model"]
    assert model["storageUri"] == quiet.stage("chat")["artifact"]["uri"]
    assert (quiet.folder / "chat" / "model" / "config.json").is_file()


@pytest.mark.parametrize(
    "victims",
    [
        pytest.param(("worker", "redis", "watcher"), id="the-operator"),
        pytest.param(("trainer",), id="a-trainer", marks=pytest.mark.slow),
    ],
)
def test_kills_at_random_moments_change_nothing_of_what_is_learnt(
    quiet: Story, tmp_path: Path, victims: tuple[str, ...]
) -> None:
    chance = random.SystemRandom()
    with OperatorSystem(tmp_path) as system:
        left = {victim: moment_in(quiet, chance) for victim in victims}
        kills = {victim: kill_of(system, victim, chance) for victim in victims}

        def kill_whose_moment_has_come(since: dict[str, float]) -> None:
            for victim in [one for one, (stage, seconds) in left.items() if since.get(stage, -1.0) >= seconds]:
                if kills[victim]():
                    del left[victim]

        story = carry_through(system, "tiny", kill_whose_moment_has_come)
    assert not left
    for name in TRAINED:
        same(quiet.folder / name, story.folder / name)
    assert sum(story.stage(name)["attempt"] - 1 for name in TRAINED) == victims.count("trainer")


def moment_in(quiet: Story, chance: random.Random) -> tuple[str, float]:
    """A stage, and so many seconds after it began: none so late that a faster run would be over before."""
    stage = chance.choice(["data", *TRAINED])
    return stage, chance.uniform(0, 0.6 * quiet.seconds[stage])


def kill_of(system: OperatorSystem, victim: str, chance: random.Random) -> Callable[[], bool]:
    """Kills and, as a cluster would, starts again; False while there is nothing to kill."""

    def program() -> bool:
        system.kill(victim)
        system.start(victim)
        return True

    def redis() -> bool:
        system.redis.kill()
        system.redis.start()
        return True

    def trainer() -> bool:
        pods = client.CoreV1Api(system.api).list_namespaced_pod(NAMESPACE).items
        running = [pid for pod in pods if pod.status.phase == "Running" for pid in marked(pod.metadata.uid)]
        if not running:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(sorted(running)), signal.SIGKILL)
        return True

    return {"redis": redis, "trainer": trainer}.get(victim, program)


def same(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first), f"{one.name} has learnt something else"
