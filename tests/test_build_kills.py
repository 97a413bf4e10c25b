"""A build that is killed at any moment, stopped, or made in pieces ends with the same bytes and pays nothing twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import builds
from tests.build_inputs import lines
from tests.llm_process import LlmProcess
from tests.llm_server import Troubles
from tests.training_jobs import write_job
from training.local import LocalRun
from ziya.leash import on_leash

pytestmark = pytest.mark.timeout(400)  # a dozen starts of a program, on a busy machine

ROWS = 120
TROUBLES = Troubles(refuse=9, broken=7, truncate=11, rate_limit=13, delay=0.05)
HOW = ("--generate", "question", "--concurrency", "4", "--back-translation", "0.3", "--shard-samples", "50")


def source(place: Path) -> Path:
    return lines(place, ROWS, lambda number: f"a dog at house number {number}")


def options(file: Path, url: str, **more: Any) -> dict[str, Any]:
    """The same build as a data stage has it."""
    told = {"input": str(file), "url": url, "model": "translator", "generate": ["question"], "shardSamples": 50}
    return {**told, "concurrency": 4, "gates": {"backTranslation": 0.3}, **more}


@pytest.fixture
def undisturbed(tmp_path: Path) -> dict[str, str]:
    with LlmProcess(tmp_path / "calm.jsonl", TROUBLES, *builds.SERVER) as server:
        builds.build(source(tmp_path / "in"), tmp_path / "calm" / "out", server.url, *HOW)
    return builds.digests(tmp_path / "calm" / "out")


def test_killed_at_random_moments_it_ends_with_the_same_bytes_and_pays_nothing_twice(
    undisturbed: dict[str, str], tmp_path: Path
) -> None:
    draw, kills = random.Random(8), 0
    with LlmProcess(tmp_path / "paid.jsonl", TROUBLES, *builds.SERVER) as server:
        while kills < 12:
            process = builds.start(tmp_path / "in" / "rows.jsonl", tmp_path / "killed" / "out", server.url, *HOW)
            before, end = len(server.counts()["paid"]), time.monotonic() + draw.uniform(0.1, 1.5)
            # The program takes seconds to begin; moments count from its first answer, or its end.
            while len(server.counts()["paid"]) == before and process.poll() is None:
                end = time.monotonic() + draw.uniform(0.1, 1.5)
                time.sleep(0.02)
            while time.monotonic() < end and process.poll() is None:
                time.sleep(0.02)
            if process.poll() is not None:
                process.communicate()
                break
            process.kill()
            process.communicate()
            kills += 1
        builds.build(tmp_path / "in" / "rows.jsonl", tmp_path / "killed" / "out", server.url, *HOW)
        counts = server.counts()
    assert kills >= 3
    assert builds.digests(tmp_path / "killed" / "out") == undisturbed
    assert set(counts["paid"].values()) == {1}
    assert set(counts["paid_contents"].values()) == {1}


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_is_clean_and_says_how_to_go_on(
    number: signal.Signals, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    with LlmProcess(tmp_path / "paid.jsonl", TROUBLES, *builds.SERVER) as server:
        file, output = tmp_path / "in" / "rows.jsonl", tmp_path / "stopped" / "out"
        process = builds.start(file, output, server.url, *HOW)
        while len(server.counts()["paid"]) < 10:
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = builds.ended(process)
        assert process.returncode == 75
        assert "Traceback" not in errors
        assert "the same command goes on from there" in errors.splitlines()[-1]
        assert not (output / "index.json").exists()
        at_stop = len(server.counts()["paid"])
        builds.build(file, output, server.url, *HOW)
        counts = server.counts()
    assert builds.digests(output) == undisturbed
    assert 10 <= at_stop < len(counts["paid"])
    # What was in flight when it stopped was waited for: no question was ever put under two names.
    assert set(counts["paid_contents"].values()) == {1}


def test_two_pieces_at_once_on_one_ledger_are_what_one_process_makes_of_them(tmp_path: Path) -> None:
    file, ledger = source(tmp_path / "in"), str(tmp_path / "ledger.sqlite")
    with LlmProcess(tmp_path / "paid.jsonl", TROUBLES, *builds.SERVER) as server:
        told = options(file, server.url, ledger=ledger)
        (tmp_path / "job").mkdir()
        stage = {"name": "out", "type": "data", "builder": "training.build.stage", "options": told, "shards": 2}
        job = write_job(tmp_path / "job", stage)
        pieces = [_piece(job, number) for number in range(2)]
        ended = [builds.ended(piece) for piece in pieces]
        assert [piece.returncode for piece in pieces] == [0, 0], ended
        paid = server.counts()
        builds.build(file, tmp_path / "one" / "out", server.url, *HOW, "--shards", "2")
        again = server.counts()
    together = builds.digests(tmp_path / "job" / "out")
    assert together == builds.digests(tmp_path / "one" / "out")
    assert {name for name in together if name.startswith("part-00001")}
    assert set(paid["paid_contents"].values()) == {1}
    # The second build has a ledger of its own, and asks the same questions under the same names.
    assert set(again["paid"].values()) == {1}
    assert set(again["paid"]) == set(paid["paid"])


def _piece(job: Path, number: int) -> subprocess.Popen[str]:
    where = ["--stage", "out", "--shard", str(number), "--output", str(job.parent)]
    command = [*on_leash(signal.SIGKILL), sys.executable, "-m", "training.data_shard", str(job), *where]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=builds.ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_a_training_job_builds_the_same_on_this_machine(undisturbed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    with LlmProcess(tmp_path / "paid.jsonl", TROUBLES, *builds.SERVER) as server:
        told = options(tmp_path / "in" / "rows.jsonl", server.url)
        stage = {"name": "out", "type": "data", "builder": "training.build.stage", "options": told}
        said: list[str] = []
        LocalRun(write_job(tmp_path / "job", stage), tmp_path / "job", said.append).run()
    assert builds.digests(tmp_path / "job" / "out") == undisturbed
    assert said == ["out: building the data with training.build.stage"]
