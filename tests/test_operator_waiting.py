"""The length of the workers' queues, as the scaler sees it: of messages that Celery has really sent."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import redis
from prometheus_client import Gauge

from services.operator.metrics import OperatorMetrics
from services.operator.queue import BUILD_SHARD, RECONCILE, make_queue
from services.operator.waiting import Waiting
from tests.chart_metrics import asked, told
from tests.helm import needs_helm
from tests.operator_programs import WATCHER, WORKER
from tests.operator_system import OperatorSystem
from tests.redis_server import RedisServer


def counted(gauge: Gauge) -> dict[str, float]:
    return {sample.labels["queue"]: sample.value for family in gauge.collect() for sample in family.samples}


def test_it_counts_what_waits_in_each_queue_at_any_priority(redis_url: str) -> None:
    gauge = OperatorMetrics().queue_waiting
    with redis.Redis.from_url(redis_url) as link, make_queue(redis_url) as queue:
        waiting = Waiting(link, gauge)
        waiting.look()
        assert counted(gauge) == {"control": 0, "data": 0}
        for priority in (0, 0, 9):
            queue.send_task(RECONCILE, [["ns", "name", "uid"]], priority=priority)
        queue.send_task(BUILD_SHARD, [])
        waiting.look()
        assert counted(gauge) == {"control": 3, "data": 1}
        link.flushall()
        waiting.look()
        assert counted(gauge) == {"control": 0, "data": 0}


def test_a_redis_that_is_away_leaves_no_old_number(redis_server: RedisServer) -> None:
    gauge = OperatorMetrics().queue_waiting
    with redis.Redis.from_url(redis_server.url, socket_timeout=1) as link:
        waiting = Waiting(link, gauge)
        waiting.look()
        assert counted(gauge)
        redis_server.freeze()
        waiting.look()
        redis_server.thaw()
        assert counted(gauge) == {}
        redis_server.kill()
        waiting.look()
        assert counted(gauge) == {}
        redis_server.start()
        waiting.look()
        assert counted(gauge) == {"control": 0, "data": 0}


@needs_helm
def test_the_running_operator_tells_what_no_worker_takes_and_all_that_the_chart_asks_for(tmp_path: Path) -> None:
    with OperatorSystem(tmp_path) as system:
        system.kill(WORKER)
        system.submit(
            "one", {"name": "align", "type": "align", "data": [{"data": "d", "task": "caption", "language": "en"}]}
        )
        page = f"http://127.0.0.1:{announced(system)}/metrics"
        system.until(lambda: sample(page, 'ziya_operator_queue_waiting{queue="control"}') > 0)
        assert sample(page, 'ziya_operator_queue_waiting{queue="data"}') == 0
        wanted = {name for name in asked() if name.startswith("ziya_operator_")}
        assert len(wanted) >= 5
        assert wanted <= told(httpx.get(page).text)


def announced(system: OperatorSystem) -> int:
    """The port of the watcher's metrics."""
    system.until(lambda: '"event": "listening"' in system.log(WATCHER))
    [line] = [one for one in system.log(WATCHER).splitlines() if '"event": "listening"' in one]
    return int(json.loads(line)["metrics"])


def sample(page: str, begins: str) -> float:
    """The value of one sample; -1 where there is none."""
    found = [one for one in httpx.get(page).text.splitlines() if one.startswith(f"{begins} ")]
    return float(found[0].rsplit(" ", 1)[1]) if found else -1.0
