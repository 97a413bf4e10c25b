"""What the operator costs while nothing happens: CPU and memory with 1,000 TrainingJobs at which nobody works.

    python -m benchmarks.operator_idle [--jobs 1000] [--seconds 600] [--only rest queued]

Two kinds of idle. *rest*: half of the jobs are suspended, half were completed an hour ago; there is nothing to do for
them. *queued*: each job has made the Job of its first stage, and that waits for its queue to admit it; such a job is
not over, so each resync has to find out that nothing has happened to it. No pod runs. After settling (every job as it
is to be, no message left, a resync more) CPU seconds are counted, user and system, of all processes of a program,
those that ended meanwhile included. Memory is read at the end: PSS, which shares out the pages that the worker's
processes have in common, and RSS, which counts them for each.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import redis

from benchmarks import machine
from benchmarks.operator_production import RESYNC_SECONDS, describe, production, stage
from benchmarks.process_costs import Memory, cpu_seconds, memory
from services.operator.status import stamp
from tests.operator_objects import GROUP, MERGE, PLURAL
from tests.operator_system import OperatorSystem

PATIENCE = 900.0
MIB = 2**20


def rest(system: OperatorSystem, jobs: int) -> None:
    """Half suspended, half complete."""
    for number in range(jobs):
        system.submit(f"job-{number:04}", stage(), suspend=True)
    _wait(lambda: _count(system, "Suspended") == jobs, f"{jobs} jobs suspended")
    ended = stamp(datetime.now(UTC) - timedelta(hours=1))
    for number in range(jobs // 2):
        status = {"phase": "Complete", "completionTime": ended}
        place = (*GROUP, system.namespace, PLURAL, f"job-{number:04}")
        system.objects.patch_namespaced_custom_object_status(*place, {"status": status}, _content_type=MERGE)


def queued(system: OperatorSystem, jobs: int) -> None:
    """The Job of each in its queue."""
    for number in range(jobs):
        system.submit(f"job-{number:04}", stage(), queueName="research")
    _wait(lambda: _in_queue(system) == jobs, f"{jobs} jobs in their queue")


# A mark that a queued job is at rest (services/operator/resting.py) lasts five to ten minutes: each ends once in ten.
SECONDS = {"rest": 120.0, "queued": 600.0}
VARIANTS: dict[str, Callable[[OperatorSystem, int], None]] = {"rest": rest, "queued": queued}


@dataclass(frozen=True)
class Costs:
    """Of watcher, worker, Redis and the API server, in this order: shares of a core over `seconds`, and memory."""

    seconds: float
    cpu: list[float]
    memory: list[Memory]


def measure(variant: str, jobs: int, seconds: float) -> Costs:
    with production(("garbage", "jobs")) as system:
        VARIANTS[variant](system, jobs)
        _wait(lambda: _messages(system) == 0, "an empty queue")
        time.sleep(RESYNC_SECONDS + 5)
        _wait(lambda: _messages(system) == 0, "an empty queue")
        pids = [system.programs["watcher"].pid, system.programs["worker"].pid, _redis_pid(system)]
        before, began = _cpu(pids), time.monotonic()
        time.sleep(seconds)
        spent, took = _cpu(pids), time.monotonic() - began
        shares = [(after - earlier) / took for after, earlier in zip(spent, before, strict=True)]
        return Costs(took, shares, [*map(memory, pids), memory(os.getpid(), alone=True)])


def tables(found: dict[str, Costs], jobs: int) -> str:
    names = ["watcher", "worker", "operator in all", "Redis", "API double (not counted)"]
    cpu, sizes = [], []
    for variant, costs in found.items():
        watcher, worker, *others = costs.cpu
        cpu.append(
            [
                f"{variant}, {costs.seconds:.0f} s",
                *(f"{share:.2%}" for share in (watcher, worker, watcher + worker, *others)),
            ]
        )
        first, second, *more = costs.memory
        sizes.append([variant, *map(_mib, (first, second, first + second, *more))])
    head = f"{jobs} idle TrainingJobs"
    return "\n\n".join(
        (
            machine.table([f"{head}: CPU, of one core", *names], cpu),
            machine.table([f"{head}: MiB, PSS (RSS)", *names], sizes),
        )
    )


def _mib(size: Memory) -> str:
    return f"{size.proportional / MIB:.0f} ({size.resident / MIB:.0f})"


def _redis_pid(system: OperatorSystem) -> int:
    with redis.Redis.from_url(system.redis.url) as link:
        return int(link.info("server")["process_id"])


def _cpu(pids: Sequence[int]) -> list[float]:
    """Of these, and of the API server in this process."""
    return [*(cpu_seconds(pid) for pid in pids), cpu_seconds(os.getpid(), alone=True)]


def _count(system: OperatorSystem, phase: str) -> int:
    """Asked of the store itself: to list so many objects again and again would keep the API server busy."""
    found = system.cluster.call(lambda: system.cluster.api.store.listed((GROUP[0], PLURAL)))
    return sum((one.get("status") or {}).get("phase") == phase for one in found)


def _in_queue(system: OperatorSystem) -> int:
    found = system.cluster.call(lambda: system.cluster.api.store.listed((GROUP[0], PLURAL)))
    conditions = [one for job in found for one in (job.get("status") or {}).get("conditions", [])]
    return sum("waits for queue" in one.get("message", "") for one in conditions)


def _messages(system: OperatorSystem) -> int:
    """Waiting, or taken and not done yet."""
    with redis.Redis.from_url(system.redis.url) as link:
        return int(link.llen("control")) + int(link.hlen("unacked"))


def _wait(reached: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not reached():
        if time.monotonic() > end:
            raise SystemExit(f"not within {PATIENCE:.0f} s: {what}")
        time.sleep(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seconds", type=float, help=f"how long CPU seconds are counted (default: {SECONDS})")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    how = parser.parse_args()
    print(describe(), flush=True)
    found = {variant: measure(variant, how.jobs, how.seconds or SECONDS[variant]) for variant in how.only}
    print(f"\n{tables(found, how.jobs)}", flush=True)


if __name__ == "__main__":
    main()
