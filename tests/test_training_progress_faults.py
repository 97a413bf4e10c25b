"""What goes wrong around a run does not reach it: torn lines, full disks, servers that talk nonsense."""

from __future__ import annotations

import io
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.test_training_progress import listening, report
from training.bar import Bar
from training.endpoint import Endpoint, EndpointConfig
from training.json_log import JsonLog, read
from training.progress import Progress
from training.tensorboard import TensorBoard

PRETRAIN = {"itc": 5.123, "itm": 0.512, "itg": 3.123, "total": 8.758}


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """A server that sends these bytes whatever it is asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()
        server.settimeout(0.1)

        def serve() -> None:
            while not ended.is_set():
                try:
                    peer, _ = server.accept()
                except TimeoutError:
                    continue
                with peer:
                    peer.settimeout(10)
                    peer.recv(65536)
                    peer.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/status"
        finally:
            ended.set()
            thread.join()


def posted(config: EndpointConfig, steps: int = 2) -> Endpoint:
    """After one post a step has been tried."""
    endpoint = Endpoint(config, post_seconds=0)
    progress = Progress([endpoint])
    for step in range(1, steps + 1):
        progress.step(report(step))
    progress.close()
    return endpoint


def test_a_server_that_speaks_no_http_is_a_failure_like_any_other() -> None:
    with answering(b"nonsense\r\n\r\n") as url:
        assert posted(EndpointConfig(url)).failures >= 1


@pytest.mark.parametrize("url", ["no address", "http://[", "ftp2://there/status"])
def test_an_address_that_is_none_is_a_failure_like_any_other(url: str) -> None:
    assert posted(EndpointConfig(url)).failures >= 1


def test_a_missing_authority_or_token_is_a_failure_and_not_the_end_of_posting(tmp_path: Path) -> None:
    with listening() as server:
        assert posted(EndpointConfig(server.url, ca_file=tmp_path / "missing")).failures >= 1
        assert server.got == []
        (tmp_path / "token").write_bytes(b"\xff\xfe")
        assert posted(EndpointConfig(server.url, token_file=tmp_path / "token")).failures >= 1
        assert posted(EndpointConfig(server.url, token_file=tmp_path / "missing")).failures == 0
        assert {token for _, token in server.got} == {None}


def test_the_token_is_not_taken_where_a_server_sends_us(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    with listening() as other:
        elsewhere = f"HTTP/1.1 307 Go\r\nLocation: {other.url}\r\nContent-Length: 0\r\n\r\n".encode()
        found = elsewhere.replace(b"307", b"302")
        for reply in (elsewhere, found):
            with answering(reply) as url:
                assert posted(EndpointConfig(url, tmp_path / "token")).failures >= 1
        assert other.got == []


def test_a_line_that_was_torn_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    Progress([JsonLog(path, 1)]).step(report(1))
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - 20)
    progress = Progress([JsonLog(path, 1)])
    progress.note("line\u2028separator")
    progress.step(report(1, attempt=2))
    assert [(one["kind"], one.get("attempt")) for one in read(path)] == [("note", 1), ("step", 2)]
    assert next(iter(read(path)))["text"] == "line\u2028separator"


def test_tensorboard_shows_a_repeated_step_once(tmp_path: Path) -> None:
    for attempt, steps in ((1, (1, 2, 3, 4)), (2, (3, 4, 5))):
        progress = Progress([TensorBoard(tmp_path)])
        progress.note(f"attempt {attempt}")
        for step in steps:
            progress.step(report(step, losses={"total": float(10 * attempt + step)}))
        progress.close()
        (file,) = (path for path in tmp_path.glob("events*") if not path.name.startswith("events.out.tfevents.0"))
        # Files are read in the order of their names, which differ by the second they were made in.
        os.rename(file, tmp_path / f"events.out.tfevents.000000000{attempt}.host")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("loss/total")] == [
        (1, 11.0),
        (2, 12.0),
        (3, 23.0),
        (4, 24.0),
        (5, 25.0),
    ]


def test_a_sink_that_cannot_write_costs_neither_the_run_nor_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    log = JsonLog(tmp_path / "metrics.jsonl", 1)
    progress = Progress([TensorBoard(tmp_path / "file" / "events"), log])
    for step in (1, 2):
        progress.step(report(step))
    progress.checkpoint(2, {"x": 0.5}, 1.0)
    progress.close()
    assert [one["kind"] for one in read(log.path)] == ["step", "step", "checkpoint"]
    assert sum("TensorBoard cannot go on" in one.message for one in caplog.records) == 1
    assert all(json.loads(line) for line in log.path.read_text().splitlines())


@pytest.mark.parametrize("losses", [PRETRAIN, {"lm": 2.345, "total": 2.345}])
def test_the_bar_fits_on_a_hundred_columns(losses: dict[str, float]) -> None:
    drawn = io.StringIO()
    console = Console(file=drawn, width=100, force_terminal=True, color_system=None, legacy_windows=False)
    long = {"stage": "pretrain", "total_steps": 250_000, "losses": losses, "samples": 1680, "useful_tokens": 30_000}
    progress = Progress([Bar("pretrain", 0, 250_000, console=console)], peak_flops=2e9)
    progress.step(report(120_000, **long))
    progress.note("said above the bar")
    progress.close()
    lines = [line.strip("\r") for line in drawn.getvalue().split("\n")]
    below = next(line for line in reversed(lines) if "MFU" in line)
    assert all(name in below for name in losses if name != "total")
    assert "loss" in below
    assert "lr 1.0e-04" in below
    assert "840 samples/s  15000 tokens/s  MFU 25%" in below
    assert "…" not in below
    assert any("120000/250000" in line and "72:13:20 left" in line for line in lines)
    assert any(line.endswith("said above the bar") for line in lines)
