"""`ziya train run`: all stages of a file on this machine, and on again after anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training_jobs import make_folder, reach, stage, write_job
from training.stage_folder import StageFolder
from ziya.checkpoint import read_config

ALIGN = stage("align", learn={"projection": 1.0})
CHAT = stage("chat", lora={"rank": 2}, learn={"llama": 1.0})
CHAT["data"] = [{"data": "data", "task": "dialogue"}]


def ziya(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_all_stages_run_in_order_and_a_second_call_does_nothing(tmp_path: Path) -> None:
    make_folder(tmp_path)
    job = write_job(tmp_path, ALIGN, CHAT, {"name": "serve", "type": "promote"}, promotion={"inferenceService": "chat"})
    first = ziya("train", "run", str(job))
    said = first.communicate()[0]
    assert first.returncode == 0, said
    assert "promoting a model to serving needs a cluster" in said
    before, after = (read_config(tmp_path / name / "model").fingerprints for name in ("align", "chat"))
    assert before["vision"] == after["vision"]
    assert before["llama"] != after["llama"]
    again = ziya("train", "run", str(job))
    said = again.communicate()[0]

    assert again.returncode == 0
    assert said.splitlines()[:2] == ["align: done before", "chat: done before"]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    make_folder(tmp_path)
    job = write_job(tmp_path, stage("align", learn={"projection": 1.0}, optimizer={"steps": 60}))
    process = ziya("train", "run", str(job))
    reach(tmp_path / "align", 2, process)
    other = ziya("train", "run", str(job))
    said = other.communicate()[0]
    assert other.returncode == 42
    assert "another run is at work there" in said
    process.send_signal(number)
    said = process.communicate()[0]

    assert process.returncode == 75, said
    assert "the same command goes on from there" in said
    again = ziya("train", "run", str(job))
    said = again.communicate()[0]
    assert again.returncode == 0, said
    assert "goes on after step" in said
    assert StageFolder(tmp_path / "align").summary()["attempt"] == 2


def test_what_is_wrong_is_said_in_a_sentence(tmp_path: Path) -> None:
    make_folder(tmp_path, samples=8)
    wrong = stage("align", learn={"projection": 1.0})
    wrong["data"] = [{"data": "nowhere"}]
    job = write_job(tmp_path, wrong)
    for words, sentence in (
        (["train", "run", str(job)], "nowhere"),
        (["train", "run", str(job), "--stage", "chat"], "has no stage 'chat'; its stages are align"),
        (["train", "run", str(tmp_path / "no.yaml")], "no.yaml cannot be read"),
    ):
        process = ziya(*words)
        said = process.communicate()[0]
        assert process.returncode == 42, said
        assert sentence in said
        assert "Traceback" not in said
