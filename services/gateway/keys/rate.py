"""A rate limit as one number: the generic cell rate algorithm (GCRA, ITU-T I.371), a token bucket without a clock.

What is kept of a bucket is the time at which it will be full again, its theoretical arrival time. A unit costs
60 / limit seconds of it; a request goes through when the time then is at most a minute ahead. So a key may take a
minute's units at once, and after that as many as come back. All times are in milliseconds, of whichever clock.
"""

from __future__ import annotations

from dataclasses import dataclass

MINUTE = 60_000.0


@dataclass(frozen=True, slots=True)
class Level:
    """A bucket as it stands: `busy` milliseconds until it is full again."""

    limit: int
    busy: float

    @property
    def remaining(self) -> int:
        """Units that may be taken at once."""
        return max(0, int(self.limit * (1 - self.busy / MINUTE) + 1e-6))

    @property
    def reset_seconds(self) -> float:
        return self.busy / 1000


def busy_after(until: float, now: float, units: int, limit: int) -> float:
    """For how long the bucket is not full when `units` are taken of it (or given back, when negative)."""
    return max(0.0, max(until, now) - now + units * MINUTE / limit)
