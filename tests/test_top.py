"""`ziya top`: its arithmetic, and the command itself before pages that real exporters serve."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from prometheus_client import generate_latest

from cli.top.frame import Frame, frame_of
from cli.top.page import Page, quantile, total
from cli.top.window import Source, Window
from services.gateway.metrics import GatewayMetrics
from tests.stack import ziya
from ziya.telemetry import Metrics, serve_metrics


class Process:
    """A stage's numbers behind a real exporter, that may be closed."""

    def __init__(self, service: str) -> None:
        self.metrics = Metrics(service)
        self.server, port = serve_metrics(self.metrics.registry, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{port}/metrics"

    def close(self) -> None:
        self.server.close()


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def started(stack: ExitStack, service: str) -> Process:
    process = Process(service)
    stack.callback(process.close)
    return process


def page_of(metrics: Metrics) -> Page:
    return Page.parse(generate_latest(metrics.registry).decode())


async def look(window: Window) -> Frame:
    async with httpx.AsyncClient(trust_env=False) as client:
        await window.look(client)
    return frame_of(window)


def test_a_page_knows_whose_it_is_and_sums_by_labels() -> None:
    metrics = Metrics("vision")
    counted = metrics.counter("features", "x", ["source"])
    counted.labels("memory").inc(2)
    counted.labels("computed").inc(3)
    page = page_of(metrics)
    assert page.stage == "vision"
    assert total([page.samples], "ziya_vision_features_total") == 5
    assert total([page.samples, page.samples], "ziya_vision_features_total", source="memory") == 4
    assert Page.parse("# HELP other x\n# TYPE other gauge\nother 1\n").stage == ""


def test_what_is_no_metrics_page_is_an_error() -> None:
    with pytest.raises(ValueError, match="html"):
        Page.parse("<html>not found</html>")


def test_a_counter_that_fell_began_again() -> None:
    before, after = Metrics("vision"), Metrics("vision")
    for metrics, number in ((before, 10), (after, 3)):
        metrics.counter("works", "x").inc(number)
    grown = page_of(after).since(page_of(before))
    assert total([grown], "ziya_vision_works_total") == 3


def test_quantiles_are_those_of_prometheus() -> None:
    metrics = Metrics("vision")
    histogram = metrics.histogram("seconds", "x", buckets=(0.1, 0.2, 0.4))
    before = page_of(metrics)
    for _ in range(60):
        histogram.observe(0.05)
    for _ in range(30):
        histogram.observe(0.15)
    for _ in range(10):
        histogram.observe(9)
    grown = [page_of(metrics).since(before)]
    name = "ziya_vision_seconds"
    assert quantile(grown, name, 0.5) == pytest.approx(0.1 * 50 / 60)
    assert quantile(grown, name, 0.75) == pytest.approx(0.1 + 0.1 * 15 / 30)
    assert quantile(grown, name, 0.95) == pytest.approx(0.4)  # above the last bound nobody knows
    assert quantile([before.samples], name, 0.5) is None


async def test_rates_and_shares_are_those_between_two_looks(processes: ExitStack) -> None:
    process = started(processes, "gateway")
    numbers = GatewayMetrics(process.metrics)
    numbers.requests.labels("http", "ok").inc(1000)
    window = Window([Source(process.url)], seconds=60)
    first = await look(window)
    assert first.traffic is not None
    assert (first.traffic.requests, first.traffic.image_cache) == (0, None)
    numbers.requests.labels("http", "ok").inc(6)
    numbers.requests.labels("grpc", "Overloaded").inc(3)
    numbers.requests.labels("http", "Cancelled").inc(2)
    numbers.requests.labels("http", "Internal").inc(1)
    numbers.images.labels("true").inc(3)
    numbers.images.labels("false").inc(1)
    numbers.bus_up.set(1)
    for _ in range(4):
        numbers.first_token.observe(0.04)
    frame = await look(window)
    seen = frame.traffic
    assert seen is not None
    in_all = seen.requests * frame.seconds
    assert in_all == pytest.approx(12)
    parts = [seen.answered, seen.refused, seen.left, seen.failed]
    assert [part / seen.requests * 12 for part in parts] == pytest.approx([6, 3, 2, 1])
    assert (seen.image_cache, seen.bus) == (0.75, True)
    assert seen.first_text.p50 == pytest.approx(0.0375)
    assert seen.between_tokens.p50 is None


async def test_replicas_are_summed_and_one_that_dies_is_missed(processes: ExitStack) -> None:
    one, other = started(processes, "vision"), Process("vision")
    gauges = [process.metrics.gauge("batch_queued", "x") for process in (one, other)]
    window = Window([Source(one.url), Source(other.url)], seconds=60)
    for number, gauge in enumerate(gauges):
        gauge.set(number + 2)
    [row] = (await look(window)).rows
    assert (row.stage, row.up, row.known, row.queued) == ("vision", 2, 2, 5)
    other.close()
    [row] = (await look(window)).rows
    assert (row.up, row.known, row.queued) == (1, 2, 2)


async def test_an_address_that_never_answered_is_said(processes: ExitStack, free_port: int) -> None:
    alive, nobody = started(processes, "qformer"), f"http://127.0.0.1:{free_port}/metrics"
    alive.metrics.gauge("bus_backlog", "x").set(7)
    frame = await look(Window([Source(alive.url), Source(nobody)], seconds=60))
    assert frame.strangers == (nobody,)
    assert frame.bus_backlog == 7
    assert frame.anybody


async def test_looks_older_than_the_window_are_forgotten(processes: ExitStack) -> None:
    process = started(processes, "llama")
    tokens = process.metrics.counter("tokens", "x")
    window = Window([Source(process.url)], seconds=0.0)
    await look(window)
    tokens.inc(100)
    await look(window)
    [row] = (await look(window)).rows
    assert row.rate == 0


def frames(processes: ExitStack) -> list[str]:
    """Addresses of a small system with something in it."""
    gateway, vision = started(processes, "gateway"), started(processes, "vision")
    GatewayMetrics(gateway.metrics).in_flight.set(3)
    vision.metrics.gauge("batch_queued", "x").set(4)
    return [process.url.removeprefix("http://") for process in (gateway, vision)]


def test_one_frame_on_paper(processes: ExitStack) -> None:
    done = ziya("top", *frames(processes), "--once", "--interval", "50ms", env={"COLUMNS": "100"})
    assert done.returncode == 0, done.stderr
    assert "in flight 3" in done.stdout
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if "1/1" in line}
    assert set(rows) == {"gateway", "vision"}
    assert rows["vision"][4] == "4"


@pytest.mark.parametrize("width", [32, 50, 80, 200])
def test_no_line_is_wider_than_the_terminal(processes: ExitStack, width: int) -> None:
    done = ziya("top", *frames(processes), "--once", "--interval", "50ms", env={"COLUMNS": str(width)})
    assert done.returncode == 0, done.stderr
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert max(map(len, lines)) <= width
    assert all(any(name in line for line in lines) for name in ("gateway", "vision", "in flight 3", "DOWN"))
    assert any("saved" in line for line in lines) == (width > 100)


def test_one_frame_as_json(processes: ExitStack) -> None:
    done = ziya("top", *frames(processes), "--json", "--interval", "50ms")
    frame = json.loads(done.stdout)
    assert frame["traffic"]["in_flight"] == 3
    assert [(row["stage"], row["up"], row["queued"]) for row in frame["rows"]] == [("gateway", 1, 0), ("vision", 1, 4)]


def test_where_nothing_runs_it_says_so(tmp_path: Path, free_port: int) -> None:
    nothing = ziya("top", "--once", env={"XDG_STATE_HOME": str(tmp_path)})
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "no stack is running on this machine" in nothing.stderr
    silent = ziya("top", "--url", f"http://127.0.0.1:{free_port}", "--once")
    assert silent.returncode == 1
    assert "no metrics page answers" in silent.stderr
    unseen = ziya("top", "--url", f"http://127.0.0.1:{free_port}")
    assert unseen.returncode == 2
    assert "--once" in unseen.stderr


@pytest.mark.parametrize("end", ["q", "Ctrl-C"])
def test_live_until_somebody_ends_it(processes: ExitStack, end: str) -> None:
    """In a real terminal, which is as before when it is over."""
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    before = termios.tcgetattr(terminal)
    argv = [sys.executable, "-m", "cli.main", "top", *frames(processes), "--interval", "100ms"]
    environment = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(
        argv, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, start_new_session=True
    )
    try:
        seen = shown(master, "in flight 3")
        assert "gateway" in shown(master, "vision", seen)
        if end == "q":
            os.write(master, b"q")
        else:
            process.send_signal(signal.SIGINT)
        seen = shown(master, "\x1b[?1049l", seen)
        assert process.wait(30) == 0
        assert "Traceback" not in seen
        assert termios.tcgetattr(terminal)[3] == before[3]
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(terminal)


def shown(master: int, word: str, seen: str = "") -> str:
    """What the terminal got until a word is in it. The test's own timeout ends a wait in vain."""
    while word not in seen:
        ready, _, _ = select.select([master], [], [], 60)
        assert ready, seen
        seen += os.read(master, 65536).decode(errors="replace")
    return seen
