"""Quotas of this process alone, for as long as Redis cannot be asked: the same rules, with the same numbers.

Then N gateways together may grant N times a limit, which is better than to refuse, or to let everything through. What
Redis last said of a bucket is remembered, so that an outage does not fill it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass

from services.gateway.admission.cost import Cost
from services.gateway.keys.key_entry import Limits
from services.gateway.keys.quota_store import Verdict
from services.gateway.keys.rate import MINUTE, busy_after


@dataclass(slots=True)
class _Buckets:
    """Milliseconds of this process's clock at which each is full again."""

    images: float = 0.0
    tokens: float = 0.0


class LocalQuota:
    """By key name. `held`: requests of a key that this process answers, counted by the caller."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Buckets] = defaultdict(_Buckets)

    def remember(self, name: str, verdict: Verdict) -> None:
        """What Redis said of a key's buckets."""
        now = _now()
        self._buckets[name] = _Buckets(now + verdict.images, now + verdict.tokens)

    def take(self, name: str, cost: Cost, limits: Limits, held: int) -> Verdict:
        """As `QuotaStore.take`."""
        now, buckets = _now(), self._buckets[name]
        images, tokens = self._busy(name, Cost(), limits, now)
        more_images, more_tokens = self._busy(name, cost, limits, now)
        waits = {
            "images": more_images - MINUTE if cost.images else 0.0,
            "tokens": more_tokens - MINUTE if cost.tokens else 0.0,
        }
        longest = max(waits, key=waits.__getitem__)
        if waits[longest] > 0:
            return Verdict(longest, waits[longest] / 1000, images, tokens)
        if limits.concurrent is not None and held >= limits.concurrent:
            return Verdict("concurrent", 0.0, images, tokens)
        buckets.images, buckets.tokens = now + more_images, now + more_tokens
        return Verdict("", 0.0, more_images, more_tokens)

    def settle(self, name: str, change: Cost, limits: Limits) -> None:
        """Takes `change` more (less, where it is negative)."""
        now, buckets = _now(), self._buckets[name]
        images, tokens = self._busy(name, change, limits, now)
        buckets.images, buckets.tokens = now + images, now + tokens

    def _busy(self, name: str, cost: Cost, limits: Limits, now: float) -> tuple[float, float]:
        buckets = self._buckets[name]
        images = busy_after(buckets.images, now, cost.images, limits.images) if limits.images else 0.0
        return images, busy_after(buckets.tokens, now, cost.tokens, limits.tokens) if limits.tokens else 0.0


def _now() -> float:
    return time.monotonic() * 1000
