"""The whole operator on an API server: from a job that is applied to its end, and what its accounts have used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.operator_system import OperatorSystem


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
