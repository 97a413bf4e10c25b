"""`python -m services.operator.alive`: whether a worker still works, as the exit status of a liveness probe.

It does while its heartbeat is young (services/operator/consuming.py). The heartbeat goes through Redis, and Redis may
be away: that is no reason to end a worker, so an old one counts only while Redis itself answers.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import redis

from services.operator.settings import OperatorSettings

# Beats come every 30 seconds, but a task may keep all processes of a worker busy for as long as it may run.
STUCK_SECONDS = 420.0
ANSWER_SECONDS = 3.0


def is_alive(heartbeat: Path, broker_url: str, stuck_seconds: float = STUCK_SECONDS) -> bool:
    """Before the first heartbeat, too, while there is no broker."""
    try:
        if time.time() - heartbeat.stat().st_mtime < stuck_seconds:
            return True
    except FileNotFoundError:
        pass
    return not _answers(broker_url)


def _answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS) as client:
            client.ping()
    except (redis.RedisError, OSError):
        return False
    return True


if __name__ == "__main__":
    settings = OperatorSettings.load()
    sys.exit(0 if is_alive(Path(settings.operator_heartbeat_file), settings.operator_broker_url) else 1)
