"""The job that makes ziya-tiny, whole but short: from its file to its last stage, twice, with equal weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.emoji_packages import digests, write_packages
from training.local import LocalRun
from training.stage_folder import StageFolder

SAMPLE = Path(__file__).parents[1] / "deploy" / "samples" / "tiny.yaml"
STEPS, BATCH = 4, 8
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def shortened(packages: Path) -> dict[str, Any]:
    """The sample's own stages with a few small steps each, a view a picture, and small data."""
    job: dict[str, Any] = yaml.safe_load(SAMPLE.read_text("utf-8"))
    for stage in job["spec"]["stages"]:
        train = stage.get("train", {})
        if stage["type"] == "data":
            stage["builder"] = "tests.emoji_packages"
            stage["options"]["packages"] = str(packages)
        if "optimizer" in train:
            train["optimizer"] |= {"steps": STEPS, "batch": BATCH, "warmupSteps": 1}
            stage["checkpoint"] = {"everySteps": 2}
        if "views" in train.get("images", {}):
            train["images"]["views"] = 1
    return job


def test_the_whole_job_twice_gives_equal_models_and_figures(tmp_path: Path) -> None:
    job = shortened(write_packages(tmp_path / "node_modules"))
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job), "utf-8")
    runs = [tmp_path / "first", tmp_path / "second"]
    for run in runs:
        LocalRun(file, run, print).run()
    for stage in job["spec"]["stages"]:
        one, other = (StageFolder(run / stage["name"]) for run in runs)
        assert one.is_done
        assert other.is_done
        if stage["type"] == "eval":
            metrics = [json.loads(folder.evaluation.read_text("utf-8"))["metrics"] for folder in (one, other)]
            assert metrics[0] == metrics[1]
        elif stage["type"] != "data":
            assert digests(one.model), stage["name"]
            assert digests(one.model) == digests(other.model), stage["name"]
