"""What checkpoints cost a run, and what a killed run costs: stall a save, and the time to the first resumed step.

    python -m benchmarks.training_saves [--steps 110] [--tables stall resume]

*Stall* is how long the loop waits for a save (a copy in memory; the writing goes on beside the next steps), and
*slower* what the steps that the writing runs beside take more than the others. For the second table a run over one
epoch is killed by SIGKILL at 10 % and at 90 % of it, and started again: the time goes from the start of the new process
to the end of the first step, loading Python, the model and the data included.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks import machine, random_checkpoint, training_data, training_job
from benchmarks.training_job import FOLDER

EVERY = 50
BESIDE = 3
EPOCH_SAMPLES, EPOCH_BATCH = 2000, 8
PATIENCE = 300.0


def _data(samples: int) -> list[dict[str, Any]]:
    place = training_data.build(FOLDER, training_data.CAPTIONS, samples)
    return [{"data": place, "task": "caption", "language": "en"}]


def _train(steps: int, batch: int, cache: str) -> dict[str, Any]:
    return {
        "optimizer": {"steps": steps, "batch": batch, "accumulate": 1, "warmupSteps": 2},
        "text": {"rowPositions": 256},
        "images": {"augment": "none", "cache": cache},
        "compute": {"precision": "float32", "workers": 1},
    }


def stall(steps: int) -> str:
    """A state of Q-Former and projection with their moments, as `align` has it, of the 110M checkpoint."""
    checkpoint = random_checkpoint.build(FOLDER / "checkpoint")
    folder = FOLDER / f"saves-{training_job.fresh('saves-')}"
    train = _train(steps, 8, "features")
    job = training_job.write(
        folder, "align", checkpoint=checkpoint, data=_data(192), train=train, saving={"everySteps": EVERY}
    )
    training_job.run(training_job.arguments(job, "align", folder))
    lines = training_job.steps(folder / "align")[2:]
    stalls = [line["stall_seconds"] for line in lines if line["stall_seconds"] > 0]
    beside = [line["seconds"] for line in lines if 0 < (line["step"] - 1) % EVERY < BESIDE + 1 and line["step"] > EVERY]
    others = [line["seconds"] for line in lines if not (line["step"] > EVERY and (line["step"] - 1) % EVERY <= BESIDE)]
    step, slower = statistics.median(others), statistics.median(beside) - statistics.median(others)
    waited = statistics.mean(stalls)
    size = sum(file.stat().st_size for file in (folder / "align" / "checkpoints").rglob("*") if file.is_file())
    kept = len(list((folder / "align" / "checkpoints").glob("step-*"))) or 1
    rows = [
        ["size of a checkpoint", f"{size / kept / 2**20:.0f} MiB"],
        ["step, median", f"{1000 * step:.0f} ms"],
        [f"stall a save, mean of {len(stalls)}", f"{1000 * waited:.0f} ms"],
        [f"the {BESIDE} steps after a save, slower by", f"{1000 * slower:.0f} ms each"],
        [f"stall, of the time of {EVERY} steps", f"{waited / (EVERY * step):.2%}"],
        ["the same with the slower steps", f"{(waited + BESIDE * max(0.0, slower)) / (EVERY * step):.2%}"],
    ]
    return machine.table([f"saving every {EVERY} steps", ""], rows)


def resume() -> str:
    """ziya-tiny, so that a step is short beside what a start costs."""
    checkpoint, steps = Path("checkpoints/ziya-tiny"), EPOCH_SAMPLES // EPOCH_BATCH
    rows = []
    for share in (0.1, 0.9, 0.1, 0.9):
        folder, kill_at = FOLDER / f"resume-{training_job.fresh('resume-')}", int(share * steps)
        train = _train(steps, EPOCH_BATCH, "none")
        job = training_job.write(
            folder, "align", checkpoint=checkpoint, data=_data(EPOCH_SAMPLES), train=train, saving={"everySteps": 10}
        )
        with _killed_after(training_job.arguments(job, "align", folder)) as run:
            _reach(run, folder, kill_at + 1, attempt=1)
        began = time.monotonic()
        with _killed_after(training_job.arguments(job, "align", folder, attempt=2)) as run:
            resumed = _reach(run, folder, kill_at - 9, attempt=2)
            seconds = time.monotonic() - began
        rows.append([f"{share:.0%} (step {kill_at} of {steps})", str(resumed), f"{seconds:.1f}"])
    return machine.table(["killed at", "first step again", "s from start to its end"], rows)


@contextmanager
def _killed_after(arguments: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A run that gets SIGKILL, with all its processes, at the end of the block."""
    process = training_job.start(arguments)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _reach(run: subprocess.Popen[str], folder: Path, step: int, attempt: int) -> int:
    """Waits for a step of an attempt, at most PATIENCE seconds; returns the first step that it logged."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and run.poll() is None:
        lines = training_job.steps(folder / "align") if (folder / "align" / "metrics.jsonl").is_file() else []
        mine = [line["step"] for line in lines if line["attempt"] == attempt]
        if mine and mine[-1] >= step:
            return int(mine[0])
        time.sleep(0.02)
    raise SystemExit(f"{folder}: step {step} of attempt {attempt} did not come within {PATIENCE:.0f} s, or it ended")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2 * EVERY + 10)
    parser.add_argument("--tables", nargs="*", default=["stall", "resume"], choices=["stall", "resume"])
    how = parser.parse_args()
    print(machine.describe(), flush=True)
    if "stall" in how.tables:
        print(f"\n{stall(how.steps)}", flush=True)
    if "resume" in how.tables:
        print(f"\n{resume()}", flush=True)


if __name__ == "__main__":
    main()
