"""`python -m services.operator.app`: the operator's watching half, one process. The working half is its Celery workers.

One replica is enough, and two do no harm: both would publish the same hints. What it must never do is decide.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from datetime import timedelta

import kopf
from aiohttp import web

from services.operator.api import Api, connect
from services.operator.broker import celery_tls, celery_url, redis_client
from services.operator.cluster import Cluster
from services.operator.hints import Hints
from services.operator.metrics import OperatorMetrics
from services.operator.progress import ProgressEndpoint
from services.operator.queue import make_queue
from services.operator.resting import Marks
from services.operator.resync import Resync
from services.operator.settings import OperatorSettings
from services.operator.waiting import Waiting
from services.operator.watch import Watcher, kopf_settings
from ziya.heap import keep_what_is_loaded
from ziya.program import run
from ziya.settings import metrics_port
from ziya.telemetry import announce_listening, serve_metrics

log = logging.getLogger(__name__)


async def main(settings: OperatorSettings) -> None:
    """Until SIGTERM or SIGINT."""
    metrics, queue = OperatorMetrics(), make_queue(celery_url(settings), celery_tls(settings))
    link = redis_client(settings, seconds=3)
    hints, waiting = Hints(queue, metrics), Waiting(link, metrics.queue_waiting)
    watcher = Watcher(hints, metrics, settings.operator_kubeconfig)
    # A client each: one thread waits for a whole list while another reviews a token.
    resync = Resync(
        _cluster(settings),
        hints,
        watcher,
        metrics,
        Marks(link),
        silent_seconds=settings.operator_broker_silent_seconds,
        finalize_after=timedelta(seconds=settings.operator_finalize_seconds),
    )
    progress = ProgressEndpoint(
        _cluster(settings), queue, metrics, settings.operator_progress_audience, settings.operator_progress_seconds
    )
    keep_what_is_loaded()  # a list of all jobs causes full collections
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(progress.application(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, settings.operator_progress_host, settings.operator_progress_port)
    await site.start()
    port = int(runner.addresses[0][1])
    server, metrics_at = serve_metrics(metrics.registry, settings.host, metrics_port(port, None))
    announce_listening(settings.program, progress=port, metrics=metrics_at)
    try:
        async with asyncio.TaskGroup() as group:
            namespace = settings.operator_namespace
            running = [
                group.create_task(hints.run()),
                group.create_task(resync.run(namespace, settings.operator_resync_seconds)),
                group.create_task(progress.run()),
                group.create_task(waiting.run()),
                group.create_task(_watch(watcher, namespace, stop)),
            ]
            await stop.wait()
            for task in running[:-1]:
                task.cancel()
    finally:
        await runner.cleanup()
        server.close()


async def _watch(watcher: Watcher, namespace: str, stop: asyncio.Event) -> None:
    await kopf.operator(
        registry=watcher.registry(),
        settings=kopf_settings(),
        standalone=True,
        clusterwide=not namespace,
        namespaces=[namespace] if namespace else [],
        stop_flag=stop,
    )
    if not stop.is_set():
        raise RuntimeError("the watching has ended by itself")


def _cluster(settings: OperatorSettings) -> Cluster:
    return Cluster(Api(connect(settings.operator_kubeconfig)))


if __name__ == "__main__":
    run(OperatorSettings, main)
