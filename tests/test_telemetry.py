"""What may stand in a log line, and metrics over HTTP."""

from __future__ import annotations

import io
import json
import logging
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from ziya import telemetry
from ziya.telemetry import JsonFormatter, Metrics, announce_listening, serve_metrics


def logged(message: str, *arguments: object, **extra: Any) -> dict[str, Any]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("vision"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.error(message, *arguments, extra=extra)
    (line,) = stream.getvalue().splitlines()
    return dict(json.loads(line))


def test_a_line_is_one_json_object() -> None:
    line = logged("第一行\nsecond %s", "line", method="Encode", seconds=0.5)
    assert line["msg"] == "第一行\nsecond line"
    assert (line["level"], line["service"], line["logger"]) == ("ERROR", "vision", "test")
    assert (line["method"], line["seconds"]) == ("Encode", 0.5)
    assert line["ts"] > 1e9


def test_bytes_never_reach_a_log() -> None:
    line = logged("got it", image=b"\x89PNG secret", view=memoryview(b"123"), array=bytearray(5))
    assert (line["image"], line["view"], line["array"]) == ("<11 bytes>", "<3 bytes>", "<5 bytes>")


def test_long_texts_are_cut() -> None:
    line = logged("x" * 10_000, prompt="y" * 10_000)
    assert len(line["msg"]) < 2100
    assert line["msg"].endswith("(10000 characters)")
    assert len(line["prompt"]) < 2100


def test_a_line_is_written_whatever_is_in_it() -> None:
    line = logged("half a pair \ud800", path=Path("a"), numbers=[1, float("inf")], text="好")
    assert (line["msg"], line["path"], line["numbers"]) == ("half a pair \ud800", "a", [1, float("inf")])
    assert logged("x", odd=object, text="好")["odd"] == str(object)


def test_the_request_id_comes_from_the_context() -> None:
    assert logged("x")["request_id"] == ""
    token = telemetry.request_id.set("abc")
    try:
        assert logged("x")["request_id"] == "abc"
    finally:
        telemetry.request_id.reset(token)


def test_request_ids_differ() -> None:
    assert len({telemetry.new_request_id() for _ in range(100)}) == 100


def test_the_listening_line(capsys: pytest.CaptureFixture[str]) -> None:
    announce_listening("vision", grpc=9001, metrics=9101)
    said = json.loads(capsys.readouterr().out)
    assert said == {"event": "listening", "service": "vision", "grpc": 9001, "metrics": 9101}


def test_metrics_over_http_until_closed() -> None:
    metrics = Metrics("vision")
    metrics.counter("images", "Images", ["kind"]).labels("png").inc(3)
    metrics.gauge("queued", "Queued").set(2)
    metrics.histogram("seconds", "Seconds").observe(0.2)
    server, port = serve_metrics(metrics.registry, "127.0.0.1", 0)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=20) as reply:
        page = reply.read().decode()
    assert 'ziya_vision_images_total{kind="png"} 3.0' in page
    assert "ziya_vision_queued 2.0" in page
    assert "ziya_vision_seconds_count 1.0" in page
    server.close()
    with pytest.raises(urllib.error.URLError):
        opener.open(f"http://127.0.0.1:{port}/metrics", timeout=20)


def test_a_metrics_port_in_use_is_named() -> None:
    server, port = serve_metrics(Metrics("vision").registry, "127.0.0.1", 0)
    with pytest.raises(OSError, match=f"cannot serve metrics on 127.0.0.1:{port}"):
        serve_metrics(Metrics("qformer").registry, "127.0.0.1", port)
    server.close()


def test_two_services_can_live_in_one_process() -> None:
    for _ in range(2):
        Metrics("vision").counter("images", "Images").inc()
