"""What an attempt ended of, when its pods are gone before anybody has looked: then the Job's own words say it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from services.operator.children import JobView
from services.operator.verdict import failure_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RULE = "matching FailJob rule at index"


@pytest.mark.parametrize(
    ("said", "reason", "code"),
    [
        (f"Pod n/p-0 has condition DisruptionTarget {RULE} 0", "Disrupted", None),
        (f"Container trainer for pod n/p-0 failed with exit code 75 {RULE} 1", "Disrupted", 75),
        (f"Container trainer for pod n/p-0 failed with exit code 42 {RULE} 1", "Rejected", 42),
        ("Job has reached the specified backoff limit", "Crashed", None),
        ("", "Crashed", None),
    ],
)
def test_the_jobs_message_is_believed_where_no_pod_is_left(said: str, reason: str, code: int | None) -> None:
    job = JobView(name="j", uid="u", stage="s", attempt=3, conditions=(("FailureTarget", said),))
    failure = failure_of(job, [], None, NOW)
    assert (failure.reason, failure.exit_code, failure.attempt) == (reason, code, 3)
    assert failure.message == (said or "its pods are gone")
