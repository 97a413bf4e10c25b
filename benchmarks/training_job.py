"""One-stage jobs for the training benchmarks, run as `ziya train run` runs them, and what they log."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from training.json_log import read
from training.local import ENVIRONMENT

FOLDER = Path("build/benchmarks/training")


def write(
    folder: Path,
    stage: str,
    *,
    checkpoint: Path,
    data: Sequence[Mapping[str, Any]],
    train: Mapping[str, Any],
    saving: Mapping[str, Any] | None = None,
) -> Path:
    """A job of one stage, named like its type, whose output is `folder`."""
    value = {
        "apiVersion": "ziya.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "benchmark"},
        "spec": {
            "model": {"checkpoint": str(checkpoint.resolve())},
            "output": {"path": str(folder)},
            "stages": [{"name": stage, "type": stage, "data": list(data), "train": dict(train)}],
        },
    }
    if saving is not None:
        value["spec"]["stages"][0]["checkpoint"] = dict(saving)  # type: ignore[index]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "benchmark.yaml"
    path.write_text(yaml.safe_dump(value, sort_keys=False))
    return path


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """`python -m ARGUMENTS` with all cores, and the environment that `ziya train run` gives its processes."""
    environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(arguments: Sequence[str]) -> None:
    """The same to its end; ends this benchmark when it fails."""
    process = start(arguments)
    try:
        said = process.communicate()[1]
    finally:
        process.kill()
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {process.returncode}:\n{said[-3000:]}")


def arguments(job: Path, stage: str, output: Path, attempt: int = 1) -> list[str]:
    return ["training.run", str(job), "--stage", stage, "--output", str(output), "--attempt", str(attempt)]


def steps(folder: Path) -> list[dict[str, Any]]:
    """The step lines of a stage's log."""
    return [line for line in read(folder / "metrics.jsonl") if line.get("kind") == "step"]


def fresh(stem: str) -> int:
    """A number that no folder of an earlier run of this machine has."""
    numbers = [path.name.rpartition("-")[2] for path in FOLDER.glob(f"{stem}*")]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=0)
