"""A bilingual data stage through the operator: its pieces are Celery tasks, its bytes those of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import builds
from tests.build_inputs import lines
from tests.llm_process import LlmProcess
from tests.operator_system import OperatorSystem
from training.build.options import read_options
from training.job import load

SAMPLE = builds.ROOT / "deploy" / "samples" / "bilingual-data.yaml"


@pytest.fixture
def system(tmp_path: Path) -> Iterator[OperatorSystem]:
    with OperatorSystem(tmp_path / "system") as system:
        yield system


def test_pieces_on_the_data_queue_make_what_one_process_makes(system: OperatorSystem, tmp_path: Path) -> None:
    file = lines(tmp_path / "in", 30, lambda number: f"a dog at house number {number}")
    with LlmProcess(tmp_path / "paid.jsonl", None, *builds.SERVER) as server:
        told = {"input": str(file), "url": server.url, "model": "translator", "gates": {"backTranslation": 0}}
        stage = {"name": "out", "type": "data", "builder": "training.build.stage", "options": told, "shards": 3}
        system.submit("bilingual", stage)
        system.reach("bilingual", "Complete")
        builds.build(file, tmp_path / "out", server.url, "--back-translation", "0", "--shards", "3")
        counts = server.counts()
    assert [shard["number"] for shard in system.stage("bilingual", "out")["shards"]] == [0, 1, 2]
    assert builds.digests(system.output("bilingual") / "out") == builds.digests(tmp_path / "out")
    assert set(counts["paid"].values()) == {1}


def test_the_sample_job_is_one_that_can_be_built() -> None:
    data = next(stage for stage in load(SAMPLE).spec.stages if stage.type == "data")
    assert data.builder == "training.build.stage"
    read = read_options(data.options, str(SAMPLE))
    assert read.licence
    assert read.budget
    # A key in a file would be in every log of the cluster.
    assert "api_key" not in yaml.safe_dump(data.options)
