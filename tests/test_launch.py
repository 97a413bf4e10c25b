"""An attempt as a pod runs it: torchrun's PET_* variables, one or two nodes, exit codes, and the last words of each."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.training_jobs import STEPS, make_folder, reach, stage, write_job
from training.stage_folder import StageFolder

ALIGN = stage("align", learn={"projection": 1.0})
LONG = stage("align", name="long", learn={"projection": 1.0}, optimizer={"steps": 200})
WRONG = {**stage("align", name="wrong", learn={"projection": 1.0}), "data": [{"data": "nowhere"}]}
EVAL = {"name": "eval", "type": "eval", "train": {"checks": [{"data": "data", "task": "caption", "limit": 4}]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_folder(tmp_path_factory.mktemp("job"))
    for one in ([LONG], [WRONG], [ALIGN], [ALIGN, EVAL]):
        write_job(folder, *one).rename(folder / f"{one[-1]['name']}.yaml")
    return folder


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Gang:
    """The pods of one attempt: a process a node, as the operator's Jobs start them. `name` may be `job:stage`."""

    def __init__(
        self, folder: Path, output: Path, name: str, *, nodes: int = 1, processes: int = 1, attempt: int = 1
    ) -> None:
        self.output, port = output, free_port()
        for link in ("data", "initial"):
            if not (output / link).exists():
                (output / link).symlink_to(folder / link)
        job, name = folder / f"{name.partition(':')[0]}.yaml", name.rpartition(":")[2]
        place = [str(job), "--stage", name, "--output", str(output), "--attempt", str(attempt)]
        self.logs = [output / f"termination-log-{node}" for node in range(nodes)]
        self.pods = [
            self._pod([*place, "--grace-seconds", "30"], node, nodes, processes, port) for node in range(nodes)
        ]

    def _pod(self, place: list[str], node: int, nodes: int, processes: int, port: int) -> subprocess.Popen[str]:
        self.logs[node].write_text("of an attempt before")
        torchrun = {
            "PET_NNODES": nodes,
            "PET_NPROC_PER_NODE": processes,
            "PET_NODE_RANK": node,
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": port,
        }
        return subprocess.Popen(
            [sys.executable, "-m", "training.launch", *place],
            env={
                **os.environ,
                **{name: str(value) for name, value in torchrun.items()},
                "OMP_NUM_THREADS": "1",
                "OMP_WAIT_POLICY": "PASSIVE",
                "ZIYA_TERMINATION_LOG": str(self.logs[node]),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def end(self) -> list[int]:
        said = [pod.communicate()[0] for pod in self.pods]
        sys.stdout.writelines(said)  # for whoever reads a failure
        return [pod.returncode for pod in self.pods]

    def words(self) -> list[Mapping[str, Any]]:
        texts = [log.read_text("utf-8") for log in self.logs]
        return [json.loads(text) if text else {} for text in texts]


@pytest.mark.parametrize(
    ("nodes", "processes"),
    [pytest.param(1, 1, marks=pytest.mark.slow), pytest.param(1, 2, marks=pytest.mark.slow), (2, 1)],
)
def test_a_stage_is_trained_and_the_first_process_tells_what_it_left(
    folder: Path, tmp_path: Path, nodes: int, processes: int
) -> None:
    gang = Gang(folder, tmp_path, "align", nodes=nodes, processes=processes)
    assert gang.end() == [0] * nodes
    first, *others = gang.words()
    summary = StageFolder(tmp_path / "align").summary()
    assert {**first, "artifact": None} == {"code": 0, "stage": "align", "step": STEPS, "metrics": {}, "artifact": None}
    assert first["artifact"] == summary["artifact"]
    assert first["artifact"]["path"] == "align/model"
    assert first["artifact"]["digest"].startswith("sha256:")
    assert others == [{}] * (nodes - 1)

    # The pod had ended well, and nobody had seen it: another attempt says the same again.
    again = Gang(folder, tmp_path, "align", nodes=nodes, processes=processes, attempt=2)
    assert again.end() == [0] * nodes
    assert again.words() == [first, *others]


@pytest.mark.parametrize(("nodes", "processes"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_a_pod_that_is_told_to_stop_stops_all_after_a_checkpoint(
    folder: Path, tmp_path: Path, nodes: int, processes: int
) -> None:
    gang = Gang(folder, tmp_path, "long", nodes=nodes, processes=processes)
    reach(tmp_path / "long", 2, gang.pods[0])
    gang.pods[-1].terminate()
    assert gang.end() == [75] * nodes
    told = gang.words()
    assert {one["code"] for one in told} == {75}
    assert {one["error"] for one in told} == {"Stopped"}
    steps = {one["step"] for one in told}
    assert len(steps) == 1
    assert (tmp_path / "long" / "checkpoints" / f"step-{steps.pop():09d}" / "COMMIT").exists()


@pytest.mark.parametrize(("nodes", "processes"), [pytest.param(1, 1, marks=pytest.mark.slow), (2, 1)])
def test_wrong_data_ends_all_pods_with_42_and_the_sentence(
    folder: Path, tmp_path: Path, nodes: int, processes: int
) -> None:
    gang = Gang(folder, tmp_path, "wrong", nodes=nodes, processes=processes)
    assert gang.end() == [42] * nodes
    for told in gang.words():
        assert told["code"] == 42
        assert told["error"] == "BadData"
        assert "nowhere" in told["reason"]
        assert told["step"] is None


def test_a_stage_that_is_not_there_ends_with_42(folder: Path, tmp_path: Path) -> None:
    gang = Gang(folder, tmp_path, "align:chat")
    assert gang.end() == [42]
    (told,) = gang.words()
    assert (told["error"], told["reason"]) == (
        "BadConfig",
        "job test has no stage 'chat'; its stages are align",
    )


def test_a_process_that_is_killed_is_named_by_its_launcher(folder: Path, tmp_path: Path) -> None:
    gang = Gang(folder, tmp_path, "long")
    reach(tmp_path / "long", 2, gang.pods[0])
    children = Path(f"/proc/{gang.pods[0].pid}/task/{gang.pods[0].pid}/children").read_text().split()
    workers = [pid for pid in children if b"training.run" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    for pid in workers:
        os.kill(int(pid), signal.SIGKILL)
    assert gang.end() == [1]
    (told,) = gang.words()
    assert told == {"code": 1, "error": "ChildFailed", "reason": "process 0 was killed by SIGKILL", "step": None}


def test_an_evaluation_tells_its_metrics_and_leaves_no_artifact(folder: Path, tmp_path: Path) -> None:
    assert Gang(folder, tmp_path, "align").end() == [0]
    gang = Gang(folder, tmp_path, "eval", processes=2)
    assert gang.end() == [0]
    (told,) = gang.words()
    assert told["metrics"].keys() == {"caption/en.exact"}
    assert "artifact" not in told
