"""Tracing in one process: what is taken and what is not, and that who does not trace pays nothing for it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.vision.app import Settings
from tests.otlp_receiver import Receiver, Span, receiving
from ziya import telemetry, tracing
from ziya.batching import Batcher
from ziya.errors import InvalidRequest
from ziya.telemetry import Metrics

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def settings(folder: Path, **values: object) -> Settings:
    return Settings(checkpoint=folder, **values)  # type: ignore[arg-type]


@pytest.fixture
def taking(receiver: Receiver, tmp_path: Path) -> Iterator[Receiver]:
    """Spans of this process go to the receiver."""
    tracing.start(settings(tmp_path, otlp_endpoint=receiver.url))
    yield receiver
    tracing.stop()
    telemetry.traceparent.set("")


def named(receiver: Receiver) -> dict[str, Span]:
    tracing.stop()  # sends what there is
    return {span.name: span for span in receiver.spans}


def test_spans_nest_by_the_context_and_it_is_as_before_when_they_end(taking: Receiver) -> None:
    telemetry.traceparent.set(CALLER)
    with tracing.span("outer", {"ziya.images": 2}, kind=tracing.Kind.SERVER) as outer:
        assert telemetry.traceparent.get() == outer.traceparent
        with tracing.span("inner"):
            now = time.perf_counter()
            tracing.record("measured", now - 0.5, now)
    assert telemetry.traceparent.get() == CALLER
    spans = named(taking)
    assert {span.trace for span in spans.values()} == {TRACE}
    assert spans["outer"].parent == CALLER.split("-")[2]
    assert spans["inner"].parent == spans["outer"].id == outer.traceparent.split("-")[2]
    assert spans["measured"].parent == spans["inner"].id
    assert spans["measured"].end - spans["measured"].start == pytest.approx(0.5, abs=0.001)
    assert (spans["outer"].kind, spans["outer"].attributes) == ("SERVER", {"ziya.images": "2"})
    assert spans["outer"].service == "ziya-vision"


def test_an_error_is_told_by_its_class_and_never_by_its_words(taking: Receiver) -> None:
    with pytest.raises(InvalidRequest), tracing.span("refused"):
        raise InvalidRequest("the prompt was: 秘密")
    with pytest.raises(asyncio.CancelledError), tracing.span("left"):
        raise asyncio.CancelledError
    spans = named(taking)
    assert (spans["refused"].failed, spans["refused"].attributes["error.type"]) == (True, "InvalidRequest")
    assert (spans["left"].failed, spans["left"].attributes["error.type"]) == (False, "CancelledError")
    assert all("秘密".encode() not in body for body in taking.bodies)


@pytest.mark.parametrize(("flags", "ratio", "sent"), [("00", 1.0, 0), ("01", 0.0, 1), ("", 0.0, 0), ("", 1.0, 1)])
def test_who_began_the_trace_says_whether_it_is_taken(
    receiver: Receiver, tmp_path: Path, flags: str, ratio: float, sent: int
) -> None:
    tracing.start(settings(tmp_path, otlp_endpoint=receiver.url, otlp_ratio=ratio))
    telemetry.traceparent.set(f"{CALLER[:-2]}{flags}" if flags else "")
    with tracing.span("work") as span:
        assert int(span.traceparent[-2:], 16) & 1 == sent  # and so is what the next process is told
    telemetry.traceparent.set("")
    assert len(named(receiver)) == sent


async def test_a_batch_of_traced_and_untraced_requests(taking: Receiver) -> None:
    """Whoever is not traced is in the batch all the same, and in no span."""
    batcher: Batcher[int, int] = Batcher(
        lambda items: items, max_batch=3, max_wait=5.0, max_queue=9, metrics=Metrics("vision")
    )

    async def submit(traceparent: str) -> None:
        telemetry.traceparent.set(traceparent)
        await batcher.submit(1)

    other = CALLER.replace(TRACE, TRACE[::-1])
    await asyncio.gather(submit(""), submit(CALLER), submit(other))
    await batcher.close()
    tracing.stop()
    batches = [span for span in taking.spans if span.name == "vision.batch"]
    [run] = [span for span in taking.spans if span.name == "vision.forward"]
    assert {span.trace for span in batches} == {TRACE, TRACE[::-1]}
    assert set(run.links) == {(span.trace, span.id) for span in batches}
    assert run.parent in {span.id for span in batches}
    assert {span.attributes["ziya.batch.size"] for span in (*batches, run)} == {"3"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        None,
        CALLER.encode(),
        CALLER.upper(),
        f"{CALLER} ",
        f"{CALLER}\n",
        f"ff{CALLER[2:]}",
        CALLER.replace(TRACE, "0" * 32),
        CALLER.replace("00f067aa0ba902b7", "0" * 16),
        CALLER.replace("4", "４", 1),
        f"{CALLER}-more",
    ],
)
def test_what_is_no_traceparent_is_not_passed_on(text: object) -> None:
    assert tracing.accept(CALLER) == CALLER
    assert tracing.accept(text) == ""


def test_off_nothing_that_makes_or_sends_spans_is_imported(tmp_path: Path) -> None:
    """redis-py imports OpenTelemetry's metrics by itself wherever the SDK is installed."""
    script = f"""
import sys
from pathlib import Path
import services.gateway.app, services.qformer.app
from services.vision.app import Settings
from ziya import telemetry, tracing
tracing.start(Settings(checkpoint=Path({str(tmp_path)!r})))
telemetry.traceparent.set({CALLER!r})
with tracing.span("work") as span:
    tracing.record("done", 0.0, 1.0)
    assert span.traceparent == {CALLER!r}
tracing.stop()
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk.trace", "opentelemetry.exporter"))])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_without_the_sdk_an_endpoint_stops_the_start(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
class Without:
    def find_spec(self, name, path=None, target=None):
        if name == "opentelemetry.sdk":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Without())
from services.vision.app import Settings
from ziya import tracing
from ziya.settings import SettingsError
try:
    tracing.start(Settings(checkpoint=Path({str(tmp_path)!r}), otlp_endpoint="http://127.0.0.1:1"))
except SettingsError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ZIYA_OTLP_ENDPOINT needs OpenTelemetry: pip install 'ziya-visual[tracing]'"


def test_a_collector_that_is_away_costs_nothing_but_the_spans(tmp_path: Path, free_port: int) -> None:
    tracing.start(settings(tmp_path, otlp_endpoint=f"http://127.0.0.1:{free_port}"))
    with tracing.span("lost") as span:
        assert span.traceparent
    tracing.stop()
    assert tracing.span("after").traceparent == ""


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://collector", "http://", "http://user:secret@collector"])
def test_an_endpoint_that_is_none_is_refused_by_name(
    tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZIYA_CHECKPOINT", str(tmp_path))
    monkeypatch.setenv("ZIYA_OTLP_ENDPOINT", endpoint)
    with pytest.raises(SystemExit):
        Settings.load()
    said = capsys.readouterr().err
    assert "ZIYA_OTLP_ENDPOINT" in said
    assert "secret" not in said
