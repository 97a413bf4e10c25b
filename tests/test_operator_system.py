"""The whole operator on an API server: from a job that is applied to its end, and what its accounts have used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.operator_system import SYSTEM, OperatorSystem
from tests.training_jobs import make_folder, stage
from tests.waiting_builder import BEGUN, GO_ON


@pytest.fixture
def system(tmp_path: Path) -> Iterator[OperatorSystem]:
    with OperatorSystem(tmp_path) as system:
        yield system


def test_a_wrong_job_fails_without_a_retry_and_says_why(system: OperatorSystem) -> None:
    source = {"data": "nowhere", "task": "caption", "language": "en"}
    system.submit("wrong", {"name": "align", "type": "align", "data": [source]})
    system.reach("wrong", "Failed")
    stage = system.stage("wrong", "align")
    assert stage["attempt"] == 1
    assert stage["lastFailure"]["exitCode"] == 42
    assert "nowhere" in stage["lastFailure"]["message"] or "initial" in stage["lastFailure"]["message"]
    assert any(event.startswith("Rejected:") for event in system.events())


def test_a_stage_trains_shows_its_progress_and_its_model_is_promoted(system: OperatorSystem) -> None:
    align = stage("align", learn={"projection": 1.0}, text={"rowPositions": 64}, optimizer={"steps": 12})
    promotion = {"inferenceService": "ziya-visual", "runtime": "ziya-triton", "steps": [100], "stepSeconds": 0}
    # Data and first checkpoint have to be in the job's folder before its first pod.
    promote = {"name": "promote", "type": "promote"}
    system.submit("train", align, promote, promotion=promotion, suspend=True)
    system.reach("train", "Suspended")
    make_folder(system.output("train"))
    system.edit("train", suspend=False)
    system.until(lambda: system.inference("ziya-visual"), "train")
    system.make_ready("ziya-visual")
    job = system.reach("train", "Complete")

    trained = system.stage("train", "align")
    assert trained["attempt"] == 1
    assert trained["artifact"]["digest"].startswith("sha256:")
    assert trained["progress"]["total"] == 12
    served = system.inference("ziya-visual")
    assert served is not None
    model = {"modelFormat": {"name": "ziya-visual"}, "runtime": "ziya-triton", "storageUri": trained["artifact"]["uri"]}
    assert served["spec"] == {"predictor": {"model": model, "enableServiceLinks": False}}
    assert job["status"]["display"]["step"] == "100%"
    for account in ("ziya-operator", "ziya-operator-worker"):
        assert not system.cluster.refused_of(f"system:serviceaccount:{SYSTEM}:{account}")


def test_a_piece_of_data_whose_worker_was_killed_is_built_again(system: OperatorSystem) -> None:
    system.submit(
        "pieces", {"name": "data", "type": "data", "builder": "tests.waiting_builder", "options": {"seconds": 60}}
    )
    folder = system.output("pieces") / "data"
    system.until((folder / BEGUN).exists, "pieces")
    system.kill("worker")
    (folder / GO_ON).touch()
    system.start("worker")
    # Its message is with the dead worker for ten minutes more; nobody waits for that.
    system.reach("pieces", "Complete")
    stage = system.stage("pieces", "data")
    assert (stage["attempt"], [shard["number"] for shard in stage["shards"]]) == (1, [0])
    assert (folder / "made.txt").read_text() == "data"
