"""How long the training operator takes to recover, event by event, next to the bound that its design gives.

    python -m benchmarks.operator_recovery [--only ROW …] [--times 3]

Each row is the whole operator with the settings of production (a resync every 30 s), newly started: a watcher and a
worker as processes, each on a real Redis, with accounts of their own, and an event that is provoked `--times` times.
Where the next resync is what helps, the event comes right after one: the longest way there is. `until` says what the
seconds end with. In the last six rows a real, tiny trainer is disturbed; *first step* is when the next attempt ends
its first step, which is nearly all Python and torch starting, and *again* how many steps were done a second time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence

from benchmarks import machine, recovery_messages, recovery_training
from benchmarks.job_watch import JobWatch
from benchmarks.operator_production import describe, production
from benchmarks.recovery_scene import Recovery, Resyncs, Row, Scene
from tests.kube.cluster import ALL

ROWS = {row.name: row for row in (*recovery_messages.ROWS, *recovery_training.ROWS)}


def provoked(row: Row, times: int) -> Iterator[Recovery]:
    with production(ALL, **row.settings) as system, JobWatch(system.api, system.namespace) as watch:
        resyncs = Resyncs()
        system.cluster.faults.add(resyncs)
        scene = Scene(system, watch, resyncs)
        scene.wait_for_worker()
        for number in range(times):
            yield row.provoke(scene, number)
            if not row.goes_on:
                scene.clear()


def cells(row: Row, found: Sequence[Recovery]) -> list[str]:
    seconds = [one.seconds for one in found]
    steps = [one.first_step for one in found if one.first_step is not None]
    again = [one.repeated for one in found if one.repeated is not None]
    return [
        row.event,
        row.bound,
        row.until,
        f"{statistics.median(seconds):.1f}",
        f"{max(seconds):.1f}",
        f"{statistics.median(steps):.1f}" if steps else "–",
        str(max(again)) if again else "–",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument(
        "--times", type=int, default=3, help="how often each event is provoked (at most 3 nodes are lost)"
    )
    how = parser.parse_args()
    print(describe(), flush=True)
    head = ["event", "bound", "until", "s, median", "s, worst", "s to the first step, median", "steps again, worst"]
    rows = []
    for name in how.only:
        rows.append(cells(ROWS[name], list(provoked(ROWS[name], how.times))))
        print(f"{name}: {', '.join(rows[-1][3:])}", file=sys.stderr, flush=True)
    print(f"\n{machine.table(head, rows)}", flush=True)


if __name__ == "__main__":
    main()
