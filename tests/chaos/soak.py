"""`make soak`: a steady load with clients that leave, and what has grown or was left behind in the end.

    python -m tests.chaos.soak                    20 minutes
    python -m tests.chaos.soak --minutes 3

Before it, what holds a number of things is filled (`full_caches.py`). The first quarter warms up: caches fill,
allocators find their size. What is cached is kept for a minute here, not ten, so that the caches are as full after the
warm-up as they ever get.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import psutil

from benchmarks.machine import describe
from cli.load.arrivals import send_times
from cli.load.experiment import Stopwatch
from cli.load.run import Bounds, Run
from tests.chaos.act import CLIENT_SECONDS, workload
from tests.chaos.callers import Both, Leaving
from tests.chaos.full_caches import fill
from tests.chaos.left_behind import left_behind
from tests.chaos.scene import PROCESSES, Scene, scene
from tests.chaos.table import markdown
from tests.chaos.verdict import outcome
from ziya import event_loop

ENVIRONMENT = {
    "ZIYA_FEATURES_TTL": "60",
    "ZIYA_TOKENS_TTL": "60",
    "ZIYA_VISION_MEMORY_BYTES": str(4 << 20),
}
WARM_UP = 0.25
SAMPLE_SECONDS = 2.0
WINDOW = 0.1  # of the time: what is compared is the median of the first such part after the warm-up and of the last
MOST_GROWTH = 0.02


class Watch:
    """Resident memory (bytes) and open files of every process, every few seconds."""

    def __init__(self, there: Scene) -> None:
        self._processes = {name: there.process(name) for name in PROCESSES}
        self._processes["redis"] = psutil.Process(there.redis.pid)
        self.memory: dict[str, list[tuple[float, int]]] = {name: [] for name in self._processes}
        self.files: dict[str, list[tuple[float, int]]] = {name: [] for name in self._processes}

    @contextmanager
    def running(self, clock: Stopwatch) -> Iterator[None]:
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(SAMPLE_SECONDS):
                for name, process in self._processes.items():
                    self.memory[name].append((clock(), process.memory_info().rss))
                    self.files[name].append((clock(), process.num_fds()))

        thread = threading.Thread(target=look, name="watch")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def compared(samples: list[tuple[float, int]], seconds: float) -> tuple[float, float]:
    """The medians of the first window after the warm-up, and of the last one."""
    warm = seconds * WARM_UP
    first = [value for at, value in samples if warm <= at < warm + seconds * WINDOW]
    last = [value for at, value in samples if seconds * (1 - WINDOW) <= at <= seconds]
    return median(first), median(last)


async def load(there: Scene, seconds: float, rate: float, clock: Stopwatch) -> Counter[str]:
    """The load; how the requests ended."""
    both = Both(there.stack.url, there.stack.addresses["grpc"], clock)
    run = Run(Leaving(both), workload(200, 0), Bounds(None, seconds, CLIENT_SECONDS), clock)
    try:
        await run.open(send_times(rate, "poisson", 1.0, 0))
    finally:
        await both.close()
    return Counter(outcome(answer, may_break_off=False) for answer in run.answers)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description="Looks for what grows.")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second (default 10)")
    given = parser.parse_args()
    seconds = given.minutes * 60
    say(f"{describe()}\n{given.minutes:g} minutes, {given.rate:g} requests/s, every third client leaves\n")
    with scene(env=ENVIRONMENT) as there:
        say(f"{event_loop.run(fill(there)):,} different questions to fill the caches that hold a number of things\n")
        watch, clock = Watch(there), Stopwatch()
        with watch.running(clock):
            counts = event_loop.run(load(there, seconds, given.rate, clock))
        time.sleep(1.0)  # idle connections close
        left = left_behind(there)
    rows, grown = [], False
    for name, samples in watch.memory.items():
        before, after = compared(samples, seconds)
        files = compared(watch.files[name], seconds)
        growth = after / before - 1
        grown = grown or growth >= MOST_GROWTH
        memory = [f"{value / (1 << 20):.1f}" for value in (before, after)]
        rows.append([name, *memory, f"{100 * growth:+.2f} %", *(f"{value:.0f}" for value in files)])
    say(markdown(["process", "MiB after warm-up", "MiB at the end", "growth", "files then", "files at the end"], rows))
    say("\nrequests: " + ", ".join(f"{count} {word}" for word, count in sorted(counts.items())))
    say("left behind: " + ", ".join(f"{count} {what}" for what, count in left.items()))
    sys.exit(1 if grown or any(left.values()) or counts["failed"] else 0)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
