"""When a worker counts as stuck: its heartbeat is old although Redis answers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from services.operator.alive import is_alive
from services.operator.settings import OperatorSettings

NOBODY = "redis://127.0.0.1:1/0"


def worker(heartbeat: Path, broker_url: str) -> OperatorSettings:
    return OperatorSettings(operator_heartbeat_file=str(heartbeat), operator_broker_url=broker_url)


def beat(folder: Path, seconds_ago: float) -> Path:
    file = folder / "heartbeat"
    file.touch()
    os.utime(file, (time.time() - seconds_ago,) * 2)
    return file


def test_a_young_heartbeat_is_enough(tmp_path: Path) -> None:
    assert is_alive(worker(beat(tmp_path, 1), NOBODY), stuck_seconds=60)


def test_an_old_one_counts_only_while_redis_answers(tmp_path: Path, redis_url: str) -> None:
    assert not is_alive(worker(beat(tmp_path, 61), redis_url), stuck_seconds=60)
    assert is_alive(worker(beat(tmp_path, 61), NOBODY), stuck_seconds=60)


def test_so_does_none(tmp_path: Path, redis_url: str) -> None:
    assert not is_alive(worker(tmp_path / "heartbeat", redis_url))
    assert is_alive(worker(tmp_path / "heartbeat", NOBODY))


def test_the_probe_is_a_command(tmp_path: Path, redis_url: str) -> None:
    environment = {**os.environ, "ZIYA_OPERATOR_BROKER_URL": redis_url}
    for ago, status in ((0, 0), (3600, 1)):
        file = {"ZIYA_OPERATOR_HEARTBEAT_FILE": str(beat(tmp_path, ago))}
        done = subprocess.run(
            [sys.executable, "-m", "services.operator.alive"], env=environment | file, timeout=60, check=False
        )
        assert done.returncode == status
