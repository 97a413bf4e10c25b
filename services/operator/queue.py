"""Celery as the operator uses it: hints to look again, and short pieces of work that may be repeated.

Nothing that is in Redis is needed: a message that is lost is sent again with the next resync, one that comes twice
finds nothing to do. So no result is kept, no task waits for another, and none is scheduled far ahead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import Celery
from kombu import Queue

CONTROL, DATA = "control", "data"
RECONCILE, FINALIZE, FLUSH_PROGRESS, BUILD_SHARD, HEARTBEAT = (
    "reconcile",
    "finalize",
    "flush_progress",
    "build_shard",
    "heartbeat",
)
CONTROL_SECONDS, DATA_SECONDS = (45, 60), (270, 300)
VISIBILITY_SECONDS = 600

SETTINGS: dict[str, Any] = {
    # A worker that dies has not done its task: acknowledge after it, and give it back when a child is killed. By
    # default both are lost.
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    # A task waits in Redis, where any worker can take it, and not in the memory of a busy one.
    "worker_prefetch_multiplier": 1,
    # Results would be state in Redis.
    "task_ignore_result": True,
    "result_backend": None,
    # Names and numbers only: no pickle.
    "task_serializer": "json",
    "accept_content": ["json"],
    "task_soft_time_limit": CONTROL_SECONDS[0],
    "task_time_limit": CONTROL_SECONDS[1],
    "task_create_missing_queues": False,
    "task_queues": [Queue(CONTROL), Queue(DATA)],
    "task_default_queue": CONTROL,
    "task_routes": {BUILD_SHARD: {"queue": DATA}},
    "broker_transport_options": {
        # Longer than any task may take, or Redis gives a running one to a second worker.
        "visibility_timeout": VISIBILITY_SECONDS,
        # How often a worker looks for messages of dead ones: by default ten times slower, whatever the timeout.
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "socket_keepalive": True,
        "socket_timeout": 30,
        "socket_connect_timeout": 3,
        # A connection that died silently is found out.
        "health_check_interval": 20,
    },
    "visibility_timeout": VISIBILITY_SECONDS,
    # A broker that is away for hours comes back: do not give up.
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    # What runs while the connection is lost cannot be acknowledged any more and comes again: stop it.
    "worker_cancel_long_running_tasks_on_connection_loss": True,
    # SIGTERM lets running tasks end for so long, then gives them back. The pod's grace period has to be longer.
    "worker_soft_shutdown_timeout": 20,
    "worker_enable_soft_shutdown_on_idle": True,
    # Against slow growth of memory.
    "worker_max_tasks_per_child": 1000,
    # Our own logging is set up before.
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "worker_send_task_events": False,
    # Remote control commands and gossip among workers would be two more subscriptions that can get stuck.
    "worker_enable_remote_control": False,
}


def make_queue(broker_url: str, tls: Mapping[str, Any] | None = None) -> Celery:
    """An application without tasks: enough to publish. A Unix socket's URL is written as redis-py does, unix://.

    `tls` is what kombu hands on to redis-py for a rediss:// URL.
    """
    broker = broker_url.replace("unix://", "redis+socket://", 1) if broker_url.startswith("unix://") else broker_url
    app = Celery("ziya-operator", broker=broker, set_as_current=False)
    app.conf.update(SETTINGS, broker_use_ssl=tls)
    return app
