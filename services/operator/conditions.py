"""Conditions of a status: set by type, with the time of the last real change."""

from __future__ import annotations

from datetime import datetime

from services.operator.status import Condition, Status

MESSAGE_CHARACTERS = 2048


def with_condition(
    status: Status,
    kind: str,
    truth: bool | None,
    reason: str,
    message: str = "",
    *,
    generation: int,
    now: datetime,
    since: Status | None = None,
) -> Status:
    """`truth` None is Unknown. The time changes only when True, False or Unknown does, against `since` if given."""
    value = {True: "True", False: "False", None: "Unknown"}[truth]
    before = (since or status).condition(kind)
    new = Condition(
        type=kind,
        status=value,
        reason=reason,
        message=message[:MESSAGE_CHARACTERS],
        last_transition_time=before.last_transition_time if before and before.status == value else now,
        observed_generation=generation,
    )
    if status.condition(kind) is None:
        return status.to(conditions=(*status.conditions, new))
    return status.to(conditions=tuple(new if one.type == kind else one for one in status.conditions))
