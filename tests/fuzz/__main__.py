"""`make fuzz`: all targets, in their long form, as a table; exit status 1 when anything was found.

The first part makes inputs by hypothesis, with another seed at every run; the second, for what only computes, has
atheris change inputs so that they reach new branches (in processes of its own, `coverage.py`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from tests.fuzz import answers, coverage, entries, messages, requests, sockets
from tests.fuzz.check import Outcome, Report, Target, fuzz
from tests.fuzz.edges import listening
from tests.fuzz.pure import PURE
from tests.redis_server import RedisServer
from tests.tiny import build_checkpoint

# Of ten inputs, how many are for a target.
SHARES = {
    "tensor envelope": 1.0,
    "bus entries": 0.5,
    "image file": 1.5,
    "data: URL": 0.5,
    "request parser": 1.0,
    "Triton inputs": 1.0,
    "fetched answer": 1.0,
    "HTTP request": 1.0,
    "HTTP bytes": 1.0,
    "VisualChat": 0.5,
    "vision and qformer": 0.5,
    "gRPC frames": 0.5,
}
COLUMNS = ("target", "inputs", "refused", "answered", "crashes", "hangs", "slowest, ms", "growth, MiB")


@contextmanager
def targets(folder: Path) -> Iterator[list[Target]]:
    """All but that of the bus, with what they need running."""
    checkpoint = build_checkpoint(folder / "checkpoint")
    (folder / "redis").mkdir()
    (folder / "gateway").mkdir()
    (folder / "bus").mkdir()
    redis = RedisServer(folder / "redis")
    redis.start()
    try:
        with (
            listening(redis.url, folder / "gateway", checkpoint) as edges,
            grpc.insecure_channel(edges.grpc) as chat,
            grpc.insecure_channel(edges.vision) as vision,
            grpc.insecure_channel(edges.qformer) as qformer,
            answers.target() as fetched,
        ):
            encoders = {"VisionEncoder": vision, "QFormer": qformer}
            yield [
                *PURE,
                fetched,
                requests.target(edges.http_port),
                sockets.http_target(edges.http_port),
                messages.target("VisualChat", {"VisualChat": chat}),
                messages.target("vision and qformer", encoders),
                sockets.grpc_target(edges.vision),
            ]
    finally:
        redis.kill()


def row(report: Report) -> str:
    """A line of the table."""
    counts = report.counts
    cells = [report.name, report.inputs, counts[Outcome.REFUSED], counts[Outcome.ANSWERED], counts[Outcome.CRASHED]]
    cells += [counts[Outcome.HUNG], f"{report.slowest * 1000:.1f}", f"{report.growth / (1 << 20):.0f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz")
    parser.add_argument("--inputs", type=int, default=12_000, help="hostile inputs by hypothesis, in all")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the same inputs again")
    parser.add_argument("--seconds", type=int, default=60, help="of atheris, for each target; 0 for none")
    parser.add_argument("--only", default="", help="the name of a target: no other")
    options = parser.parse_args()
    reports: list[Report] = []
    print(f"seed {options.seed}")  # noqa: T201
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))  # noqa: T201

    def long_form(one: Target) -> None:
        if options.only in ("", one.name):
            reports.append(fuzz(one, round(options.inputs * SHARES[one.name] / 10), options.seed))
            print(row(reports[-1]), flush=True)  # noqa: T201

    with tempfile.TemporaryDirectory(prefix="zv") as folder:
        with targets(Path(folder)) as every:
            for one in every:
                long_form(one)
        # Its event loop may not stand still meanwhile: a reader that is not heard of for seconds has lost its Redis.
        with entries.target(Path(folder, "bus")) as bus:
            long_form(bus)
    if options.seconds and not coverage.ATHERIS.is_dir():
        print("atheris is not there: make fuzz puts it into .venv/atheris")  # noqa: T201
    elif options.seconds:
        for one in (pure for pure in PURE if options.only in ("", pure.name)):
            reports.append(coverage.run(one.name, options.seconds))
            print(row(reports[-1]), flush=True)  # noqa: T201
    whole = Report("all")
    for report in reports:
        whole.counts = {outcome: whole.counts[outcome] + report.counts[outcome] for outcome in Outcome}
        whole.slowest, whole.growth = max(whole.slowest, report.slowest), max(whole.growth, report.growth)
    print(row(whole))  # noqa: T201
    found = [text for report in reports for text in report.found]
    for text in found[:50]:
        print(f"\n{text[:4000]}", file=sys.stderr)  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
