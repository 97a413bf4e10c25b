"""The smallest job with everything in it: data, four training stages of one and two processes and nodes, a promotion.

`carry_through` is what a user and KServe do from `kubectl apply` to the end; it keeps what a user could have seen.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.operator_system import OperatorSystem, until
from tests.training_jobs import make_folder, stage

TRAINED = ("pretrain", "align", "instruct", "chat")
SERVED = "ziya-visual"
STEPS = 24


def build(folder: Path) -> list[str]:
    """The builder of its data stage: pictures, and a first checkpoint. What a killed one left is made anew."""
    for name in ("data", "initial"):
        shutil.rmtree(folder / name, ignore_errors=True)
    make_folder(folder)
    return ["data", "initial"]


def training(kind: str, *, nodes: int = 1, processes: int = 1, **train: Any) -> dict[str, Any]:
    made = stage(kind, optimizer={"steps": STEPS}, **train)
    sources = [{**source, "data": "data/data"} for source in made["data"]]
    parallel = {"nodes": nodes, "procsPerNode": processes}
    return {**made, "data": sources, "parallelism": parallel, "retry": {"limit": 5, "backoff": {"initial": 1}}}


def stages() -> list[dict[str, Any]]:
    text = {"rowPositions": 96}
    return [
        {"name": "data", "type": "data", "builder": "tests.whole_job"},
        training("pretrain", processes=2, learn={"qformer": 1.0}),
        training("align", nodes=2, learn={"projection": 1.0}, text=text),
        training("instruct", lora={"rank": 2, "dropout": 0.1}, text=text),
        training("chat", processes=2, lora={"rank": 2}, learn={"llama": 1.0}, text=text),
        {"name": "promote", "type": "promote"},
    ]


@dataclass
class Story:
    """What was to be seen of a job: its end, the seconds of each stage, and the columns of kubectl while it ran."""

    job: dict[str, Any]
    folder: Path
    seconds: dict[str, float]
    shown: list[tuple[str, str]] = field(default_factory=list)

    def stage(self, name: str) -> dict[str, Any]:
        return next(one for one in self.job["status"]["stages"] if one["name"] == name)


def carry_through(
    system: OperatorSystem, name: str, disturb: Callable[[dict[str, float]], None] = lambda since: None
) -> Story:
    """Submits and waits for the end. `disturb` is called again and again, with the stages that were seen so far and how
    many seconds ago each was first."""
    promotion = {"inferenceService": SERVED, "runtime": "ziya-triton", "stepSeconds": 0}
    system.submit(name, *stages(), model={"checkpoint": "data/initial"}, promotion=promotion)
    shown: list[tuple[str, str]] = []
    first_seen: dict[str, float] = {}

    def over() -> bool:
        now = time.monotonic()
        disturb({stage: now - then for stage, then in first_seen.items()})
        status = system.status(name)
        stage = status.get("currentStage", "")
        first_seen.setdefault(stage, now)
        shown.append((stage, (status.get("display") or {}).get("step", "")))
        served = system.inference(SERVED)
        if served is not None and "status" not in served:
            system.make_ready(SERVED)
        assert status.get("phase") != "Failed", system.story(name)
        return bool(status.get("phase") == "Complete")

    until(over, 400, lambda: system.story(name))
    lasted = [later - then for then, later in itertools.pairwise(first_seen.values())]
    return Story(system.job(name), system.output(name), dict(zip(first_seen, lasted, strict=False)), shown)
