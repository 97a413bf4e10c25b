"""What a kubelet hears on the metrics port: whether the loop turns, and whether the service takes calls."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge

from ziya import probes
from ziya.probes import Probes
from ziya.telemetry import serve_metrics


class Loop:
    """An event loop in a thread of its own, with an exporter that watches it."""

    def __init__(self) -> None:
        self.ready = False
        self.registry = CollectorRegistry()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        made = asyncio.run_coroutine_threadsafe(self._probes(), self.loop).result()
        self.server, port = serve_metrics(self.registry, "127.0.0.1", 0, made)
        self.url = f"http://127.0.0.1:{port}"

    async def _probes(self) -> Probes:
        return Probes(lambda: self.ready)

    def status(self, path: str) -> int:
        return httpx.get(self.url + path, trust_env=False, timeout=20).status_code

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@contextmanager
def looping() -> Iterator[Loop]:
    loop = Loop()
    try:
        yield loop
    finally:
        if not loop.loop.is_closed():
            loop.close()
        loop.server.close()


def test_ready_is_what_the_service_says() -> None:
    with looping() as loop:
        assert (loop.status("/readyz"), loop.status("/healthz")) == (503, 200)
        loop.ready = True
        assert loop.status("/readyz") == 200


def test_metrics_are_beside_them() -> None:
    with looping() as loop:
        Gauge("ziya_test_number", "A number", registry=loop.registry).set(7)
        page = httpx.get(loop.url + "/metrics", trust_env=False).text
        assert "ziya_test_number 7.0" in page


def test_a_stuck_loop_is_not_alive_and_one_that_goes_on_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "TURN_SECONDS", 0.2)
    with looping() as loop:
        free = threading.Event()
        loop.loop.call_soon_threadsafe(free.wait)
        assert loop.status("/healthz") == 503
        free.set()
        while loop.status("/healthz") != 200:
            time.sleep(0.01)


def test_a_loop_that_has_ended_is_not_alive() -> None:
    with looping() as loop:
        loop.close()
        assert loop.status("/healthz") == 503


# A service whose model never comes.
STARTING = """
import asyncio
from ziya.rpc_server import ServerOptions, serve
from ziya.telemetry import Metrics

async def ready():
    print("loading", flush=True)
    await asyncio.Event().wait()

options = ServerOptions()
asyncio.run(serve("test", lambda server: None, [], options=options, metrics=Metrics("test"), ready=ready))
print("stopped", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_can_be_stopped_before_it_is_ready(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", STARTING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "loading\n"
            process.send_signal(number)
            assert process.stdout.readline() == "stopped\n"
            assert process.wait(20) == 0
        finally:
            process.kill()
