"""How many messages wait for the Celery workers, which is what their scaler goes by.

kombu keeps a queue as one list in Redis for each of its priorities; what a worker has taken is in none of them. Every
few seconds one round trip asks for their lengths. Where Redis does not answer there is no number: an old one would lie.
"""

from __future__ import annotations

import asyncio

import redis
from kombu.transport.redis import Channel
from prometheus_client import Gauge

from services.operator.queue import CONTROL, DATA

LOOK_SECONDS = 5.0
QUEUES = (CONTROL, DATA)


class Waiting:
    """`gauge` has the label `queue`."""

    def __init__(self, link: redis.Redis, gauge: Gauge) -> None:
        self._link, self._gauge = link, gauge

    async def run(self, seconds: float = LOOK_SECONDS) -> None:
        """Until cancelled."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(seconds)

    def look(self) -> None:
        """Once."""
        pipe = self._link.pipeline(transaction=False)
        for queue in QUEUES:
            for name in lists(queue):
                pipe.llen(name)
        try:
            lengths = pipe.execute()
        except redis.RedisError:
            self._gauge.clear()
            return
        each = len(lengths) // len(QUEUES)
        for number, queue in enumerate(QUEUES):
            self._gauge.labels(queue).set(sum(lengths[number * each : (number + 1) * each]))


def lists(queue: str) -> list[str]:
    """The keys in Redis of one queue."""
    return [f"{queue}{Channel.sep}{step}" if step else queue for step in Channel.priority_steps]
