"""Hints to look at a TrainingJob, on their way to Celery: many events become one message, and none is lost here.

A job is dirty from its first event until a message about it was taken by the broker. While the broker is away the dirty
ones wait in memory; when the operator itself dies, its next start sees every object anew.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field

from celery import Celery
from kombu.exceptions import OperationalError

from services.operator.metrics import OperatorMetrics
from services.operator.queue import FINALIZE, RECONCILE
from services.operator.resource import Key

# Messages about one job come no closer than this; its pods' events come in bursts.
QUIET_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 5.0
log = logging.getLogger(__name__)


@dataclass
class Hints:
    """`down_since` is when publishing began to fail (a reading of time.monotonic), None while it works."""

    app: Celery
    metrics: OperatorMetrics
    down_since: float | None = None
    _dirty: dict[Key, str] = field(default_factory=dict)
    _sent: dict[Key, float] = field(default_factory=dict)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def mark(self, key: Key, *, deleting: bool = False) -> None:
        """From the event loop's thread."""
        self._dirty[key] = FINALIZE if deleting else RECONCILE
        self._more.set()

    async def run(self) -> None:
        """Publishes until cancelled."""
        failures = 0
        while True:
            await self._more.wait()
            self._more.clear()
            failures = 0 if await self._publish() else failures + 1
            if failures:
                await asyncio.sleep(min(0.1 * 2**failures, LONGEST_WAIT_SECONDS) * random.uniform(0.5, 1.0))
                self._more.set()

    async def _publish(self) -> bool:
        now = time.monotonic()
        due = {key: task for key, task in self._dirty.items() if now - self._sent.get(key, -1e9) >= QUIET_SECONDS}
        for key, task in due.items():
            del self._dirty[key]
            try:
                await asyncio.to_thread(self.app.send_task, task, [key], retry=False)
            except OperationalError as error:
                self._dirty.setdefault(key, task)
                self._failed(error)
                return False
            self._sent[key] = time.monotonic()
            self.metrics.hints.labels(task).inc()
        self.down_since = None
        if len(self._sent) > 4 * len(due) + 1000:
            self._sent = {key: at for key, at in self._sent.items() if now - at < QUIET_SECONDS}
        if self._dirty:
            asyncio.get_running_loop().call_later(QUIET_SECONDS, self._more.set)
        return True

    def _failed(self, error: Exception) -> None:
        self.metrics.broker_failures.inc()
        if self.down_since is None:
            self.down_since = time.monotonic()
            log.warning("the broker takes no messages, %d jobs wait: %s", len(self._dirty), error)
