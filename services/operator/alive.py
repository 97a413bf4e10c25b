"""`python -m services.operator.alive`: whether a worker still works, as the exit status of a liveness probe.

It does while its heartbeat is young (services/operator/consuming.py). The heartbeat goes through Redis, and Redis may
be away: that is no reason to end a worker, so an old one counts only while Redis itself answers.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import redis

from services.operator.broker import redis_client
from services.operator.settings import OperatorSettings

# Beats come every 30 seconds, but a task may keep all processes of a worker busy for as long as it may run.
STUCK_SECONDS = 420.0
ANSWER_SECONDS = 3.0


def is_alive(settings: OperatorSettings, stuck_seconds: float = STUCK_SECONDS) -> bool:
    """Before the first heartbeat, too, while there is no broker."""
    try:
        if time.time() - Path(settings.operator_heartbeat_file).stat().st_mtime < stuck_seconds:
            return True
    except FileNotFoundError:
        pass
    return not _answers(settings)


def _answers(settings: OperatorSettings) -> bool:
    try:
        with redis_client(settings, seconds=ANSWER_SECONDS) as client:
            client.ping()
    except (redis.RedisError, OSError):
        return False
    return True


if __name__ == "__main__":
    sys.exit(0 if is_alive(OperatorSettings.load()) else 1)
