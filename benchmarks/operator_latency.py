"""From `kubectl apply` to the first Job: how long the operator takes to act on a new TrainingJob.

    python -m benchmarks.operator_latency [--jobs 200] [--burst 50] [--rounds 4]

A watch on Jobs is opened before. The time runs from the return of the client's POST (and, in columns of its own, from
its start) to the event of that watch which tells of the Job; between lie the watch event of the TrainingJob, the
message through Redis, and the worker's look, which writes the status before it makes the Job. *One at a time*: the
operator is idle, since the job before was deleted and is gone; jobs come at random moments. *At once*: so many clients
post together, and then all is deleted; rounds are counted together. No pod runs: the Jobs wait for a queue.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kubernetes.client import ApiException

from benchmarks import machine
from benchmarks.job_watch import JobWatch
from benchmarks.operator_production import describe, production, quantile, stage
from tests.operator_system import OperatorSystem

WARM_UP = 5
TARGETS = "Target: p50 under 1 s, p99 under 3 s."


@dataclass(frozen=True)
class Latency:
    """Seconds: how long the client's POST took, and from its start to the Job."""

    post: float
    whole: float

    @property
    def after(self) -> float:
        """From the return of the POST."""
        return self.whole - self.post


def apply(system: OperatorSystem, watch: JobWatch, name: str) -> Latency:
    """One job, from its POST to its Job."""
    began = time.monotonic()
    made = system.submit(name, stage(), queueName="research")
    posted = time.monotonic()
    return Latency(posted - began, watch.first(made["metadata"]["uid"], "align") - began)


def one_at_a_time(system: OperatorSystem, watch: JobWatch, jobs: int) -> tuple[Latency, list[Latency]]:
    """The very first one after the start of the operator, and the others after a warm-up."""
    found = []
    for number in range(1 + WARM_UP + jobs):
        found.append(apply(system, watch, f"one-{number}"))
        remove(system, [f"one-{number}"])
        time.sleep(random.uniform(0.1, 0.6))
    return found[0], found[1 + WARM_UP :]


def bursts(system: OperatorSystem, watch: JobWatch, size: int, rounds: int) -> tuple[list[Latency], str]:
    """Of all rounds together; and what the API server had to do meanwhile."""
    found: list[Latency] = []
    took, busy = [], []
    with ThreadPoolExecutor(size) as clients:
        for number in range(rounds):
            names = [f"burst-{number}-{client}" for client in range(size)]
            began, worked = time.monotonic(), system.cluster.call(time.thread_time)
            found += clients.map(lambda name: apply(system, watch, name), names)
            took.append(time.monotonic() - began)
            busy.append(system.cluster.call(time.thread_time) - worked)
            remove(system, names)
            time.sleep(random.uniform(2.0, 5.0))
    said = f"A burst lasted {statistics.median(took):.1f} s from its first POST to its last Job (median of {rounds}); "
    return found, said + f"meanwhile the API double's one thread was at work for {statistics.median(busy):.1f} s."


def remove(system: OperatorSystem, names: Iterable[str]) -> None:
    """Deletes them, and waits until they are gone."""
    for name in names:
        system.delete(name)
    for name in names:
        while not _gone(system, name):
            time.sleep(0.05)


def _gone(system: OperatorSystem, name: str) -> bool:
    try:
        system.job(name)
    except ApiException as error:
        if error.status != 404:
            raise
        return True
    return False


def row(name: str, found: list[Latency]) -> list[str]:
    after, whole = [one.after for one in found], [one.whole for one in found]
    shares = (0.5, 0.9, 0.99)
    times = [*(quantile(after, share) for share in shares), max(after), *(quantile(whole, share) for share in shares)]
    return [name, str(len(found)), *(f"{1000 * seconds:.0f}" for seconds in times), _post(found)]


def _post(found: list[Latency]) -> str:
    return f"{1000 * quantile([one.post for one in found], 0.5):.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200, help="one at a time")
    parser.add_argument("--burst", type=int, default=50, help="at once")
    parser.add_argument("--rounds", type=int, default=4, help="bursts")
    how = parser.parse_args()
    print(describe(), flush=True)
    with production(("garbage", "jobs")) as system, JobWatch(system.api, system.namespace) as watch:
        first, single = one_at_a_time(system, watch, how.jobs)
        burst, said = bursts(system, watch, how.burst, how.rounds)
    head = ["apply to first Job, ms after the POST's return", "n", "p50", "p90", "p99", "worst"]
    head += ["from its start: p50", "p90", "p99", "the POST itself, p50"]
    rows = [row("one at a time", single), row(f"{how.burst} at once", burst), row("first after a start", [first])]
    print(f"\n{machine.table(head, rows)}\n\n{said}\n\n{TARGETS}", flush=True)


if __name__ == "__main__":
    main()
