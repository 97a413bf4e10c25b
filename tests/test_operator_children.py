"""Jobs and pods as the API gives them, in the few facts that a decision needs; odd ones make nobody stumble."""

from __future__ import annotations

from typing import Any

import pytest

from services.operator.children import ATTEMPT, STAGE, read_job, read_pod


def pod(**state: Any) -> dict[str, Any]:
    labels = {STAGE: "align", ATTEMPT: "2"}
    status = {"phase": "Pending", "containerStatuses": [{"name": "trainer", "state": state}]}
    return {"metadata": {"name": "p", "uid": "u", "labels": labels}, "spec": {}, "status": status}


@pytest.mark.parametrize(
    ("waiting", "told"),
    [
        ({"reason": "ImagePullBackOff", "message": "no such tag"}, "ImagePullBackOff: no such tag"),
        ({"reason": "CreateContainerConfigError"}, "CreateContainerConfigError: no more is said"),
        ({"reason": "ContainerCreating"}, ""),
        ({}, ""),
    ],
)
def test_a_pod_says_why_its_container_does_not_start(waiting: dict[str, str], told: str) -> None:
    assert read_pod(pod(waiting=waiting)).waits == told


def test_a_pod_that_runs_or_was_never_seen_waits_for_nothing() -> None:
    assert read_pod(pod(running={"startedAt": "2026-01-01T00:00:00Z"})).waits == ""
    assert read_pod({**pod(), "status": {}}).waits == ""


def test_labels_that_somebody_has_written_over_belong_to_no_attempt() -> None:
    raw = {**pod(), "metadata": {"name": "p", "uid": "u", "labels": {STAGE: "align", ATTEMPT: "two"}}}
    assert (read_pod(raw).attempt, read_job(raw).attempt) == (0, 0)
