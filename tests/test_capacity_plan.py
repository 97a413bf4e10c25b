"""`ziya plan` as a person types it: the plan holds, is no larger than it must be, and errors are one sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.capacity.arrivals import Mix, poisson, steady
from cli.capacity.request import STAGES
from cli.capacity.simulate import Limits, simulate
from cli.capacity.stage_times import StageTimes
from tests.stage_times import times

# A language model that decodes 8 at once in 20 ms: 16 tokens take 0.04 s of a replica, so 40 a second need two.
TIMES = times(
    gateway={"request_seconds": 0.001, "token_seconds": 0.0001},
    vision={"batch_seconds": {1: 0.02, 16: 0.16}, "around_seconds": 0.005},
    qformer={"batch_seconds": {1: 0.004, 16: 0.03}, "around_seconds": 0.002},
    llama={"step_seconds": {1: 0.012, 8: 0.02}, "prefill_seconds": {1: 0.015, 512: 0.06}, "around_seconds": 0.005},
)
SLOTS = "llama: {maxRunning: 8}\n"


def ziya(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli.main", "plan", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=110, check=False, env={**os.environ, "COLUMNS": "200"}
    )


@pytest.fixture
def files(tmp_path: Path) -> list[str | Path]:
    measured, values = tmp_path / "times.json", tmp_path / "values.yaml"
    measured.write_text(TIMES.model_dump_json())
    values.write_text(SLOTS)
    return ["--times", measured, "--values", values]


def planned(*words: str | Path) -> dict[str, Any]:
    done = ziya(*words, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def p99(replicas: dict[str, int], rps: float, seed: int) -> float:
    """By a run of one's own: longer, and with other arrivals."""
    limits = Limits(engine=Limits().engine.__class__(slots=8))
    found = poisson(steady(rps), rps, 200.0, Mix(0.8, 0.3, 64, 16), seed)
    outcome = simulate(found, TIMES, limits, replicas, seed=seed)
    return float(np.percentile(outcome.first_tokens(20.0), 99)) if outcome.count("refused") < 8 else float("inf")


def test_the_plan_meets_its_goal_and_one_replica_less_does_not(files: list[str | Path]) -> None:
    found = planned("--rps", "40", "--p99-ttft", "300ms", "--answer-tokens", "16", *files)
    replicas = {name: stage["replicas"] for name, stage in found["stages"].items()}
    assert list(replicas) == list(STAGES)
    assert p99(replicas, 40.0, seed=11) < 0.33
    assert max(found["p99"]) <= 0.3
    for name, count in replicas.items():
        if count > 1:
            fewer = p99({**replicas, name: count - 1}, 40.0, seed=11)
            assert fewer > 0.27 or found["stages"][name]["utilisation"] * count / (count - 1) > 0.9
    assert replicas["llama"] > 1
    assert found["bottleneck"] == "llama"
    assert found["chart"] == {f"{name}.replicas": count for name, count in replicas.items()}


def test_more_load_needs_more_and_the_same_question_gets_the_same_answer(files: list[str | Path]) -> None:
    few, many, again = (
        planned("--rps", rps, "--p99-ttft", "1s", "--answer-tokens", "16", "--seed", "3", *files)
        for rps in ("30", "120", "120")
    )
    assert many == again
    for name in STAGES:
        assert few["stages"][name]["replicas"] <= many["stages"][name]["replicas"]
    assert many["stages"]["llama"]["replicas"] >= 3


def test_pictures_make_vision_the_bottleneck(files: list[str | Path]) -> None:
    """Answers of one token, and a vision encoder that does 100 a second: 80 fresh pictures are most of that."""
    words = ["--rps", "80", "--p99-ttft", "800ms", "--answer-tokens", "1", "--prompt-tokens", "8"]
    assert planned(*words, "--image-share", "1", "--reuse", "0", *files)["bottleneck"] == "vision"
    assert planned(*words, "--image-share", "0", *files)["stages"]["vision"]["utilisation"] == 0


def test_who_refuses_gets_more_and_not_who_is_busiest(files: list[str | Path], tmp_path: Path) -> None:
    few = tmp_path / "few.yaml"
    few.write_text("gateway: {maxInFlight: 8}\n")
    words = ("--rps", "40", "--p99-ttft", "1s", "--answer-tokens", "16", *files)
    ample, bounded = planned(*words), planned(*words, "--values", few)
    assert ample["stages"]["gateway"]["replicas"] == 1
    assert bounded["stages"]["gateway"]["replicas"] > 1
    assert bounded["stages"]["llama"]["replicas"] == ample["stages"]["llama"]["replicas"]


def test_with_a_scaler_the_chart_gets_its_bounds(files: list[str | Path], tmp_path: Path) -> None:
    scaled = tmp_path / "scaled.yaml"
    scaled.write_text("autoscaling: {kind: keda}\nllama: {scaling: {max: 1}}\n")
    found = planned("--rps", "40", "--p99-ttft", "1s", "--answer-tokens", "16", *files, "--values", scaled)
    count = found["stages"]["llama"]["replicas"]
    assert found["chart"]["llama.scaling.min"] == count > 1
    assert found["chart"]["llama.scaling.max"] == count
    assert "gateway.scaling.max" not in found["chart"]


def test_what_a_person_reads(files: list[str | Path]) -> None:
    done = ziya("--rps", "40", "--p99-ttft", "0.3s", "--answer-tokens", "16", *files)
    assert done.returncode == 0, done.stderr
    for name in STAGES:
        assert re.search(rf"^{name} +\d+ +\d+% +\d+ ms +(\d+ ms|requests fail)$", done.stdout, re.MULTILINE), (
            done.stdout
        )
    assert re.search(
        r"^bottleneck: llama; at \d+ requests a second the first token comes later than 300 ms",
        done.stdout,
        re.MULTILINE,
    )
    assert re.search(r"^first token: p50 \d+ ms, p99 \d+ ms", done.stdout, re.MULTILINE)
    assert re.search(r"^chart: --set gateway.replicas=\d+ ", done.stdout, re.MULTILINE)


def test_the_command_of_the_documentation_needs_nothing_else() -> None:
    done = ziya("--rps", "40", "--p99-ttft", "2s")
    assert done.returncode == 0, done.stderr
    assert "shipped with the program" in done.stdout
    assert "bottleneck: " in done.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--rps", "40", "--p99-ttft", "20ms"], r"a request alone takes 57\.5 ms \(llama 25\.5 ms, vision 25\.0 ms"),
        (["--rps", "0", "--p99-ttft", "2s"], "--rps must be above 0"),
        (["--rps", "40", "--p99-ttft", "soon"], "--p99-ttft is a time such as 2s"),
        (["--rps", "40", "--p99-ttft", "-2s"], "--p99-ttft is a time such as 2s"),
        (["--rps", "1e9", "--p99-ttft", "2s"], "too many to plan"),
        (["--rps", "40", "--p99-ttft", "2s", "--times", "/nowhere.json"], "cannot read the stage times"),
        (["--rps", "40", "--p99-ttft", "2s", "--values", "/nowhere.yaml"], "cannot read the values"),
    ],
)
def test_errors_are_one_sentence(files: list[str | Path], words: list[str], sentence: str) -> None:
    done = ziya(*files, *words)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert done.stderr.startswith("ziya: ")
    assert done.stderr.count("\n") == 1
    assert re.search(sentence, done.stderr), done.stderr


def test_a_batch_that_takes_too_long_is_not_cured_by_replicas(tmp_path: Path) -> None:
    """Alone, a request takes 0.6 s; but one in twenty meets a batch that just began, however many there are."""
    slow = times(
        llama={"step_seconds": {1: 0.1}, "prefill_seconds": {1: 0.5}, "around_seconds": 0.0, "start_seconds": 0.0}
    )
    measured = tmp_path / "slow.json"
    measured.write_text(slow.model_dump_json())
    done = ziya("--rps", "0.5", "--p99-ttft", "501ms", "--times", measured)
    assert done.returncode == 1
    assert "more replicas do not bring the first token within 501 ms" in done.stderr


def test_unknown_names_and_wrong_numbers_in_the_times_are_refused(tmp_path: Path) -> None:
    measured = tmp_path / "times.json"
    for key, value, sentence in (
        ("visoin", {}, "visoin: extra inputs are not permitted"),
        ("image_tokens", -1, "image_tokens: input should be greater than or equal to 0"),
        ("vision", {"batch_seconds": {}}, "vision.batch_seconds"),
    ):
        measured.write_text(json.dumps({**json.loads(TIMES.model_dump_json()), key: value}))
        done = ziya("--rps", "4", "--p99-ttft", "2s", "--times", measured)
        assert done.returncode == 2
        assert sentence in done.stderr


def test_between_points_lines_are_straight() -> None:
    measured: StageTimes = TIMES
    assert measured.vision.batch(16) == 0.16
    assert measured.vision.batch(1) == 0.02
    assert measured.vision.batch(4) == pytest.approx(0.02 + 3 * 0.14 / 15)
    assert measured.vision.batch(31) == pytest.approx(0.16 + 0.14)  # beyond the last, too
    assert times(vision={"batch_seconds": {4: 0.1}}).vision.batch(9) == 0.1
