"""Which of many are taken when not all are wanted."""

from __future__ import annotations


def spaced(count: int, limit: int | None) -> list[int]:
    """At most `limit` of `count` numbers, evenly spaced and always the same."""
    chosen = count if limit is None else min(limit, count)
    return [number * count // chosen for number in range(chosen)]
