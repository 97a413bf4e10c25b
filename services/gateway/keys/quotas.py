"""The limits of each API key: asked of Redis once a request, settled afterwards in the background.

A key without limits costs nothing. For one with limits a request takes its units and a lease in one round trip; at its
end it gives the lease back and corrects the tokens by what it really took, but nobody waits for that: a task sends all
that has ended meanwhile together, and renews the leases of what goes on. When Redis does not answer in time, this
process alone keeps the limits for a moment; no request fails for it.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from services.gateway.admission.cost import Cost
from services.gateway.admission.metrics import AdmissionMetrics
from services.gateway.keys.key_entry import Key, Limits
from services.gateway.keys.local_quota import LocalQuota
from services.gateway.keys.quota_store import QuotaStore, Verdict
from services.gateway.keys.rate import Level
from services.gateway.together import cancel
from ziya.errors import BadField, BusUnavailable, RateLimited
from ziya.redis_link import Command, RedisLink

# After Redis failed it is left alone for so long, so that an outage does not delay every request.
PAUSE_SECONDS = 1.0
_ENDED_AT_MOST = 10_000


@dataclass(frozen=True, slots=True)
class QuotaTimes:
    """Seconds: the longest wait for Redis, and how long a lease counts that nobody renews."""

    patience: float = 0.25
    lease: float = 10.0


class Grant:
    """What a request took of its key's limits, as a context manager; set `spent` to what it really cost."""

    def __init__(self, cost: Cost, headers: dict[str, str], settle: Callable[[Cost], None]) -> None:
        self.headers = headers
        self.spent = Cost()
        self._cost, self._settle = cost, settle

    def __enter__(self) -> Grant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._settle(self.spent - self._cost)


class Quotas:
    """Use inside one event loop; `close` ends its task."""

    def __init__(self, link: RedisLink, metrics: AdmissionMetrics, times: QuotaTimes = QuotaTimes()) -> None:
        self._store = QuotaStore(link, lease_seconds=times.lease)
        self._local = LocalQuota()
        self._metrics, self._times = metrics, times
        self._process, self._leases = secrets.token_hex(6), 0
        self._held: dict[str, set[str]] = defaultdict(set)  # key name -> leases of requests that go on
        self._ended: list[Command] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._redis_again = 0.0

    async def take(self, key: Key, cost: Cost) -> Grant:
        """Raises RateLimited when a limit is reached, and BadField when it never could be kept."""
        if not key.limits.any:
            return Grant(cost, {}, lambda _: None)
        _possible(key, cost)
        self._leases += 1
        lease = f"{self._process}-{self._leases}"
        try:
            verdict, shared = await self._ask(key, lease, cost)
        except asyncio.CancelledError:
            self._end(key, lease, Cost())
            raise
        headers = _headers(key.limits, verdict)
        if verdict.refused:
            if not shared:
                self._end(key, lease, Cost())
            self._metrics.shed(f"key_{verdict.refused}", key.name)
            raise RateLimited(_sentence(key, verdict), max(1.0, verdict.wait), headers)
        if key.limits.concurrent is not None:
            self._held[key.name].add(lease)
        return Grant(cost, headers, lambda change: self._settle(key, lease, change, shared=shared))

    async def close(self) -> None:
        """Sends what is left to send, when Redis takes it."""
        if self._task is not None:
            await cancel([self._task])
            self._task = None
            await self._send()

    async def _ask(self, key: Key, lease: str, cost: Cost) -> tuple[Verdict, bool]:
        """The verdict, and whether it is Redis's."""
        if self._task is None:
            self._task = asyncio.create_task(self._settle_and_renew())
        if time.monotonic() < self._redis_again:
            return self._alone("paused", key, cost), False
        try:
            async with asyncio.timeout(self._times.patience):
                verdict = await self._store.take(key.name, lease, cost, key.limits)
        except TimeoutError:
            return self._alone("slow", key, cost), False
        except BusUnavailable:
            return self._alone("unavailable", key, cost), False
        self._local.remember(key.name, verdict)
        return verdict, True

    def _alone(self, reason: str, key: Key, cost: Cost) -> Verdict:
        if reason != "paused":
            self._redis_again = time.monotonic() + PAUSE_SECONDS
        self._metrics.fallback.labels(reason).inc()
        held = len(self._held[key.name]) if key.name in self._held else 0
        return self._local.take(key.name, cost, key.limits, held)

    def _settle(self, key: Key, lease: str, change: Cost, *, shared: bool) -> None:
        self._local.settle(key.name, change, key.limits)
        self._held[key.name].discard(lease)
        if not self._held[key.name]:
            del self._held[key.name]
        self._end(key, lease, change if shared else Cost())

    def _end(self, key: Key, lease: str, change: Cost) -> None:
        """Has a lease taken back, if Redis has it.

        Where Redis did not answer, nobody knows: then nothing is corrected there, for it may have taken nothing.
        """
        if len(self._ended) < _ENDED_AT_MOST:
            self._ended.append(self._store.settling(key.name, lease, change, key.limits))
            self._wake.set()

    async def _settle_and_renew(self) -> None:
        """For ever. One task, so that no lease is renewed after it was given back."""
        renew = time.monotonic() + self._times.lease / 3
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, renew - time.monotonic())):
                    await self._wake.wait()
            self._wake.clear()
            if time.monotonic() >= renew:
                renew = time.monotonic() + self._times.lease / 3
                self._ended += [self._store.renewing(name, sorted(leases)) for name, leases in self._held.items()]
            await self._send()

    async def _send(self) -> None:
        """What Redis does not take is forgotten: leases end by themselves, and buckets fill."""
        commands, self._ended = self._ended, []
        try:
            await self._store.send(commands)
        except BusUnavailable:
            self._redis_again = time.monotonic() + PAUSE_SECONDS


def _possible(key: Key, cost: Cost) -> None:
    for name, param, units, limit in (
        ("images", "messages", cost.images, key.limits.images),
        ("tokens", "max_tokens", cost.tokens, key.limits.tokens),
    ):
        if limit is not None and units > limit:
            said = f"this request may take {units} {name}, and the key {key.name} has {limit} a minute: ask for less"
            raise BadField(said, param, "rate_limit_exceeded")


def _sentence(key: Key, verdict: Verdict) -> str:
    if verdict.refused == "concurrent":
        return f"the key {key.name} has {key.limits.concurrent} requests in flight, which is its limit"
    limit = key.limits.images if verdict.refused == "images" else key.limits.tokens
    return (
        f"the key {key.name} has used up its {limit} {verdict.refused} a minute; "
        f"ask again in {max(1, math.ceil(verdict.wait))} s"
    )


def _headers(limits: Limits, verdict: Verdict) -> dict[str, str]:
    """As OpenAI's API has them, for tokens; for images, of the same make."""
    headers = {}
    for name, limit, busy in (("images", limits.images, verdict.images), ("tokens", limits.tokens, verdict.tokens)):
        if limit is not None:
            level = Level(limit, busy)
            headers[f"x-ratelimit-limit-{name}"] = str(limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(level.remaining)
            headers[f"x-ratelimit-reset-{name}"] = f"{level.reset_seconds:.3f}s"
    return headers
