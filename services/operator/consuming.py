"""The Celery worker itself: its queues, and a heartbeat that goes through Redis and back.

Liveness is the age of a file that the worker touches when it has *carried out* a message it sent to itself; a worker
whose consumer is stuck still answers pings, but this it does not do (celery issues 8030 and 10205).
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, ClassVar

from celery import Celery, bootsteps
from kombu import Queue
from kombu.exceptions import OperationalError

from services.operator.broker import celery_tls, celery_url
from services.operator.queue import CONTROL, DATA, HEARTBEAT, make_queue
from services.operator.settings import OperatorSettings
from services.operator.tasks import register
from ziya.heap import keep_what_is_loaded
from ziya.telemetry import configure_logging

BEAT_SECONDS = 30.0
# How often the worker sees whether one of its processes has died; it is told at once only of the one it forked last.
CHILDREN_SECONDS = 1.0
log = logging.getLogger(__name__)


def worker_app(settings: OperatorSettings, queues: list[str]) -> Celery:
    """With its tasks, and a queue of its own for the heartbeat."""
    app = make_queue(celery_url(settings), celery_tls(settings))
    register(app, settings)
    own = f"{HEARTBEAT}.{os.uname().nodename}.{os.getpid()}"
    app.conf.task_queues = [*(Queue(name) for name in queues), Queue(own, auto_delete=True, expires=10 * BEAT_SECONDS)]

    class Beat(bootsteps.StartStopStep):  # type: ignore[misc]  # celery has no types
        requires: ClassVar[set[str]] = {"celery.worker.components:Timer", "celery.worker.components:Pool"}

        def start(self, parent: Any) -> None:
            send()
            beat = parent.timer.call_repeatedly(BEAT_SECONDS, send)
            self.entries = [beat, parent.timer.call_repeatedly(CHILDREN_SECONDS, parent.pool.maintain_pool)]

        def stop(self, parent: Any) -> None:
            for entry in self.entries:
                entry.cancel()

    def send() -> None:
        try:
            app.send_task(HEARTBEAT, queue=own, expires=BEAT_SECONDS, retry=False)
        except OperationalError as error:
            log.warning("no heartbeat: %s", error)

    app.steps["worker"].add(Beat)
    return app


def main() -> None:
    settings = OperatorSettings.load()
    configure_logging(f"{settings.program}-worker", settings.log_level)
    # Celery tells of every message twice; what a task has to say it says itself.
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)
    queues = sys.argv[1:] or [CONTROL, DATA]
    app = worker_app(settings, queues)
    worker = app.Worker(
        concurrency=settings.operator_concurrency,
        pool_cls="prefork",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        optimization="fair",
        loglevel=settings.log_level,
    )
    keep_what_is_loaded()  # and its pages stay those of all processes
    worker.start()
    sys.exit(worker.exitcode or 0)


if __name__ == "__main__":
    main()
