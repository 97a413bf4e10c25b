"""What a request asks for besides its object."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STRICT, WARN, IGNORE = "Strict", "Warn", "Ignore"


@dataclass
class Options:
    """`warnings` are filled on the way and go back in headers."""

    manager: str = "unknown"
    field_validation: str = WARN
    force: bool = False
    dry_run: bool = False
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DeleteOptions:
    grace: int | None = None
    propagation: str = ""
    uid: str | None = None
    resource_version: str | None = None
    dry_run: bool = False

    @classmethod
    def read(cls, body: dict[str, Any], query: dict[str, str]) -> DeleteOptions:
        """From the body and from the query, which count alike."""
        grace = body.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
        required = body.get("preconditions") or {}
        orphans = body.get("orphanDependents", query.get("orphanDependents"))
        propagation = body.get("propagationPolicy") or query.get("propagationPolicy", "")
        if not propagation and orphans is not None:
            propagation = "Orphan" if str(orphans).lower() == "true" else "Background"
        return cls(
            grace=None if grace is None else int(grace),
            propagation=propagation,
            uid=required.get("uid"),
            resource_version=required.get("resourceVersion"),
            dry_run=bool(body.get("dryRun") or query.get("dryRun")),
        )
