"""What a run says of itself: rates, lines, the log, TensorBoard, and the operator's endpoint over a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations.integration_utils import KubeflowCallback

from training.bar import Bar
from training.endpoint import Endpoint, EndpointConfig
from training.json_log import JsonLog, read
from training.progress import Pace, Progress, StepReport
from training.tensorboard import TensorBoard


def report(step: int = 1, *, seconds: float = 2.0, **changes: Any) -> StepReport:
    values: dict[str, Any] = {
        "stage": "align",
        "step": step,
        "total_steps": 10,
        "attempt": 1,
        "losses": {"lm": 2.0, "total": 2.0},
        "by_source": {"caption/zh": 1.5},
        "rates": {"rate": 1e-4},
        "grad_norm": 0.5,
        "samples": 8,
        "useful_tokens": 100,
        "positions": 128,
        "supervised_tokens": 40,
        "flops": 1e9,
        "seconds": seconds,
        "data_seconds": 0.1,
        "stall_seconds": 0.0,
    }
    return StepReport(**{**values, **changes})


def test_the_pace_is_that_of_a_usual_step_and_a_slow_one_does_not_spoil_it() -> None:
    progress = Progress(peak_flops=2e9)
    for step, seconds in enumerate((2.0, 2.0, 100.0, 2.0, 2.0), start=1):
        progress.step(report(step, seconds=seconds))

    assert progress.pace() == Pace(2.0, 4.0, 50.0, 0.25, 10.0)


def test_without_a_known_peak_there_is_no_mfu() -> None:
    progress = Progress()
    progress.step(report())
    assert progress.pace().mfu is None


def test_without_a_terminal_lines_have_mean_losses_since_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress([Bar("align", 0, 10, line_seconds=1e9)])
    for step in range(1, 11):
        progress.step(report(step, losses={"lm": float(step), "total": float(step)}))
    progress.checkpoint(10, {"caption/zh.exact": 0.25, "retrieval/zh.itc_i2t_r10": 0.5}, 1.0)
    lines = capsys.readouterr().out.splitlines()

    assert len(lines) == 2
    assert lines[0].startswith("align 10/10  lm 5.500  caption")
    assert "caption/zh 1.500" in lines[0]
    assert "lr 1.0e-04" in lines[0]
    assert "0:00 left" in lines[0]
    assert "caption/zh.exact 25.0%" in lines[1]
    assert "r10" not in lines[1]


def test_the_log_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    Progress([JsonLog(path, 1)]).step(report(1))
    with path.open("a") as file:
        file.write('{"kind": "step", "st')
        file.write("\n")
    progress = Progress([JsonLog(path, 2)])
    progress.step(report(1, attempt=2))
    progress.checkpoint(1, {"x": 0.5}, 2.0)

    assert [(one["kind"], one.get("attempt")) for one in read(path)] == [("step", 1), ("step", 2), ("checkpoint", 2)]


def test_a_log_that_cannot_be_written_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    progress = Progress([JsonLog(tmp_path / "file" / "metrics.jsonl", 1)])
    progress.step(report(1))
    progress.step(report(2))
    assert sum("cannot be written" in one.message for one in caplog.records) == 1


def test_tensorboard_has_losses_and_metrics(tmp_path: Path) -> None:
    progress = Progress([TensorBoard(tmp_path)])
    progress.step(report(1))
    progress.checkpoint(1, {"caption/zh.exact": 0.5}, 1.0)
    progress.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()

    assert events.Scalars("loss/lm")[0].value == 2.0
    assert events.Scalars("check/caption/zh.exact")[0].value == 0.5


class Listener(ThreadingHTTPServer):
    """Keeps what was posted; answers `status`."""

    daemon_threads = True
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[dict[str, Any], str | None]] = []
        self.arrived = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/status"


class _Handler(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append((body, self.headers["Authorization"]))
        self.server.arrived.set()
        self.server.go_on.wait(30)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def listening() -> Iterator[Listener]:
    server = Listener()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_newest_status_is_posted_with_the_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    with listening() as server:
        progress = Progress([Endpoint(EndpointConfig(server.url, tmp_path / "token"), post_seconds=1e9)])
        progress.step(report(1))
        server.arrived.wait(30)
        for step in (2, 3, 4):
            progress.step(report(step))
        progress.close()

    (first, token), (last, _) = server.got
    assert token == "Bearer secret"
    assert first["trainerStatus"]["progressPercentage"] == 10
    assert last["trainerStatus"]["progressPercentage"] == 40
    assert last["trainerStatus"]["estimatedRemainingSeconds"] == 12
    assert {"name": "loss", "value": "2.0"} in last["trainerStatus"]["metrics"]


def test_a_server_that_refuses_or_hangs_never_holds_the_run() -> None:
    with listening() as server:
        server.status = 500
        server.go_on.clear()
        endpoint = Endpoint(EndpointConfig(server.url), post_seconds=0)
        progress = Progress([endpoint])
        for step in range(1, 11):
            progress.step(report(step))
        assert server.arrived.wait(30)
        server.go_on.set()
        progress.close()
        assert endpoint.failures == len(server.got)
        assert 1 <= len(server.got) <= 10


def test_the_status_has_the_fields_that_transformers_posts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("t")
    with listening() as server:
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", server.url)
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(tmp_path / "token"))
        KubeflowCallback()._update_status(10, 20, {"loss": 1.0}, force=True)
        config = EndpointConfig.from_environment()
        assert config == EndpointConfig(server.url, tmp_path / "token")
        progress = Progress([Endpoint(config)])
        progress.step(report(1))
        progress.close()

    (theirs, authorized), (ours, _) = server.got
    assert authorized == "Bearer t"
    assert shape(theirs) == shape(ours)


def shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: shape(one) for name, one in value.items()}
    return [shape(value[0])] if isinstance(value, list) else type(value)
