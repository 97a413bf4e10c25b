"""Steps of ziya-tiny's `vision` with and without patch dropout, of its `pretrain` with captions in groups and without.

    python -m benchmarks.tiny_steps --at build/tiny/job [--rounds 4] [--steps 40]

Each process runs the first steps of a stage as the sample's job has it, with one field changed, on the data and from
the model that `make tiny` left; the ways take turns. `pretrain` sees one view a picture, so that its cache is quick
to make. What is learnt is not looked at here.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from pathlib import Path
from typing import Any

import yaml

from benchmarks import machine, quiet, training_job
from benchmarks.alternation import order
from benchmarks.training_job import FOLDER

SAMPLE = Path(__file__).parent.parent / "deploy" / "samples" / "tiny.yaml"
# Stage, what is changed under `train`, and how the two ways are called.
WAYS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("vision", {"images": {"patchDropout": 0.0}}, "vision, all patches"),
    ("vision", {}, "vision, half of the patches"),
    ("pretrain", {"text": {"captionGroups": 1}}, "pretrain, all captions together"),
    ("pretrain", {}, "pretrain, captions in groups of like length"),
)
WARM = 5


def folder_of(made: Path, number: int, stage: str, changes: dict[str, Any]) -> Path:
    """An output folder with a job.yaml in it, that goes on from what `made` has.

    The job keeps its own number of steps, for the sake of its schedules.
    """
    job = yaml.safe_load(SAMPLE.read_text("utf-8"))
    found = next(one for one in job["spec"]["stages"] if one["name"] == stage)
    train = found["train"]
    if "views" in train["images"]:
        train["images"]["views"] = 1
    for name, fields in changes.items():
        train[name] |= fields
    train["checks"] = []
    folder = FOLDER / f"tiny-steps-{number}"
    folder.mkdir(parents=True)
    for name in ("data", "vision") if stage == "pretrain" else ("data",):
        (folder / name).symlink_to((made / name).resolve())
    cache = (FOLDER / "cache-of-tiny-steps").resolve()
    cache.mkdir(exist_ok=True)
    (folder / "cache").symlink_to(cache)
    (folder / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False), "utf-8")
    return folder


def measure(made: Path, way: int, number: int, steps: int) -> list[float]:
    """Seconds of the steps after the first ones."""
    stage, changes, _ = WAYS[way]
    folder = folder_of(made, number, stage, changes)
    with training_job.killed_after(training_job.arguments(folder / "job.yaml", stage, folder)) as run:
        training_job.reach(run, folder / stage, steps)
    seconds = [line["seconds"] for line in training_job.steps(folder / stage)[WARM:steps]]
    shutil.rmtree(folder)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at", type=Path, default=Path("build/tiny/job"))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to wait for a quiet machine")
    how = parser.parse_args()
    if not (how.at / "vision" / "model").is_dir():
        print(f"not measured: {how.at} is not what `make tiny` leaves")
        return
    quiet.wait(how.patience, print)
    print(machine.describe(), flush=True)
    found: list[list[float]] = [[] for _ in WAYS]
    number = training_job.fresh("tiny-steps-")
    for turn in range(how.rounds):
        for way in order(len(WAYS), turn):
            found[way] += measure(how.at, way, number, how.steps)
            number += 1
    middles = [statistics.median(seconds) for seconds in found]
    rows = [
        [name, f"{middles[way]:.2f}", f"{middles[way - way % 2] / middles[way]:.2f}x"]
        for way, (_, _, name) in enumerate(WAYS)
    ]
    print(f"\nmedians of {how.rounds} processes with {how.steps - WARM} steps each\n")
    print(machine.table(["ziya-tiny", "s a step", "faster"], rows))


if __name__ == "__main__":
    main()
