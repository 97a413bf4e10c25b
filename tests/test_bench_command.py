"""`ziya bench` as a person types it, against a server whose every answer is known."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority
from tests.openai_server import ANSWER, Cut, Script, Wait, error, event, finish, openai_server, text
from tests.stack import ziya
from ziya.tls import AUTHORITY, CERTIFICATE, KEY


async def start(*words: str | Path, env: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
    environment = {**os.environ, "COLUMNS": "200", **(env or {})}
    argv = [sys.executable, "-m", "cli.main", "bench", *map(str, words)]
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
    return await asyncio.create_subprocess_exec(*argv, env=environment, **pipes)


async def bench(*words: str | Path, env: Mapping[str, str] | None = None) -> tuple[int | None, str, str]:
    """Status, output and what was said beside it."""
    process = await start(*words, env=env)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def measured(folder: Path, *words: str | Path) -> dict[str, Any]:
    file = folder / "out.json"
    status, _, err = await bench(*words, "--json", file)
    assert status == 0, err
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


async def test_a_closed_loop_with_its_table_file_and_picture(tmp_path: Path) -> None:
    file, plot = tmp_path / "out.json", tmp_path / "out.svg"
    words = (
        "--requests",
        "12",
        "--concurrency",
        "3",
        "--images",
        "generated",
        "--image-size",
        "32",
        "--slo",
        "ttft=60s",
    )
    async with openai_server() as server:
        status, out, err = await bench("--url", server.url, *words, "--json", file, "--plot", plot)
    assert status == 0, err
    assert server.most_in_flight <= 3
    assert f"{server.url}, fake-model: closed loop, 3 at once" in out
    assert "12 of 12 answered, 0 failed" in out
    assert "(36 tokens, counted from usage)" in out
    assert "goodput" in out
    assert re.search(r"^time to first token( +\d+\.?\d*){6}$", out, re.MULTILINE)
    found = json.loads(file.read_text("utf-8"))
    summary = found["summary"]
    assert (summary["succeeded"], summary["pictures"], summary["reused"]) == (12, 12, 0)
    assert summary["ttft"]["count"] == summary["e2e"]["count"] == 12
    assert summary["itl"]["count"] == 24
    assert summary["goodput"]["share"] == 1.0
    assert (found["model"], found["served_by"], found["finished"]) == ("fake-model", "tests", True)
    assert found["settings"]["mix"]["answer"]["text"] == "64"
    assert found["client"]["packages"]["numpy"]
    assert [request["number"] for request in found["requests"]] == list(range(12))
    assert all(len(request["pieces"]) == 3 and request["error"] is None for request in found["requests"])
    # Two to count a word's tokens, two to warm up, and none of these is measured.
    assert len(server.bodies) == 2 + 2 + 12
    drawing = plot.read_text("utf-8")
    assert "fake-model" in drawing
    assert "first token: p50" in drawing


async def test_errors_are_told_by_kind_and_never_counted_as_answers(tmp_path: Path) -> None:
    broken = [
        error(429, "too many"),
        Script((text("a"), Cut())),
        Script((text("a"), event({"error": "bad"}), finish())),
    ]
    scripts = [Script(ANSWER)] * 4 + [*broken, error(429, "again"), Script(ANSWER)]
    file = tmp_path / "out.json"
    async with openai_server(*scripts) as server:
        status, out, err = await bench("--url", server.url, "--requests", "10", "--json", file)
    assert status == 0, err
    assert "6 of 10 answered, 4 failed" in out
    assert "2 × http 429: too many" in out
    found = json.loads(file.read_text("utf-8"))
    errors = {one["kind"]: one["count"] for one in found["summary"]["errors"]}
    assert errors == {"http 429": 2, "broken": 1, "error in stream": 1}
    assert found["summary"]["tokens"]["completion"] == 18
    assert [request["error"] is None for request in found["requests"]] == [False] * 4 + [True] * 6


async def test_an_open_loop_has_a_poisson_rate_and_tells_its_lag(tmp_path: Path) -> None:
    words = ("--rate", "100", "--requests", "50", "--seed", "7")
    async with openai_server() as server:
        found = await measured(tmp_path, "--url", server.url, *words)
    intended = [request["intended"] for request in found["requests"]]
    assert intended == sorted(intended)
    assert 0.3 < intended[-1] < 0.7
    assert all(request["sent"] >= request["intended"] for request in found["requests"])
    assert found["summary"]["send_lag"]["count"] == 50


async def test_a_prompt_has_the_wanted_tokens_by_the_servers_own_count(tmp_path: Path) -> None:
    """This server counts two tokens a word and nine for the rest; so 40 tokens are 20 words."""

    def counted(words: int) -> Script:
        tokens = {"prompt_tokens": 9 + 2 * words, "completion_tokens": 1}
        return Script((text("a"), finish(), event({"choices": [], "usage": tokens})))

    async with openai_server(counted(8), counted(40), Script(ANSWER)) as server:
        words = ("--requests", "3", "--warm-up", "0", "--prompt-tokens", "40", "--answer-tokens", "5")
        found = await measured(tmp_path, "--url", server.url, *words)
    assert found["tokens_per_word"] == 2.0
    assert [len(body["messages"][-1]["content"].split()) for body in server.bodies] == [8, 40, 20, 20, 20]
    assert [body["max_tokens"] for body in server.bodies] == [1, 1, 5, 5, 5]


async def test_without_usage_pieces_are_counted_and_that_is_said() -> None:
    async with openai_server(Script(ANSWER[:-2])) as server:
        status, out, _ = await bench("--url", server.url, "--requests", "2")
    assert status == 0
    assert "(6 tokens, counted from pieces)" in out
    assert "the server counts no tokens" in out


async def test_ctrl_c_reports_what_was_measured(tmp_path: Path) -> None:
    file, never = tmp_path / "out.json", asyncio.Event()
    scripts = [Script(ANSWER)] * 9 + [Script((text("a"), Wait(never)))]
    async with openai_server(*scripts) as server:
        process = await start("--url", server.url, "--requests", "50", "--json", file)
        while len(server.bodies) < 10:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert process.returncode == 130
    assert "5 of 6 answered, 0 failed, 1 not ended" in out.decode()
    assert "stopped; the figures are of what had happened until then" in err.decode()
    found = json.loads(file.read_text("utf-8"))
    assert found["finished"] is False
    assert found["requests"][-1]["ended"] is None


async def test_the_key_goes_to_the_server_and_nowhere_else(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    async with openai_server() as server:
        env = {"OPENAI_API_KEY": "sk-very-secret"}
        status, out, err = await bench("--url", server.url, "--requests", "1", "--json", file, env=env)
    assert status == 0
    assert {head["authorization"] for head in server.heads} == {"Bearer sk-very-secret"}
    assert "sk-very" not in out + err + file.read_text("utf-8")


async def test_over_tls_the_servers_certificate_is_checked(tmp_path: Path) -> None:
    Authority().issue(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / CERTIFICATE, tmp_path / KEY)
    async with openai_server(tls=tls) as server:
        words = ("--url", server.url, "--requests", "2")
        status, out, err = await bench(*words, env={"SSL_CERT_FILE": str(tmp_path / AUTHORITY)})
        assert status == 0, err
        assert "2 of 2 answered" in out
        for more in ((), ("--model", "fake-model")):
            status, _, err = await bench(*words, *more)
            assert status == 1
            assert "certificate verify failed" in err.lower().replace("_", " ")


async def test_a_server_that_answers_nothing_is_told_at_once() -> None:
    async with openai_server(error(400, "no such field: stream_options")) as server:
        status, out, err = await bench("--url", server.url)
    assert (status, out) == (1, "")
    assert "the first question was not answered (http 400): no such field: stream_options" in err
    assert len(server.bodies) == 1


async def test_when_all_fails_the_status_says_so(tmp_path: Path) -> None:
    plot = tmp_path / "out.png"
    async with openai_server(Script(ANSWER), Script(ANSWER), error(503, "gone")) as server:
        words = ("--requests", "3", "--warm-up", "0", "--plot", plot)
        status, out, err = await bench("--url", server.url, *words)
    assert status == 1
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "0 of 3 answered, 3 failed" in out
    assert "no request was answered" in err


async def test_without_matplotlib_it_says_so_before_the_load(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')")
    async with openai_server() as server:
        words = ("--url", server.url, "--plot", tmp_path / "a.png")
        status, _, err = await bench(*words, env={"PYTHONPATH": str(tmp_path)})
        assert (status, server.bodies) == (1, [])
        assert "--plot needs matplotlib: pip install matplotlib" in err
        status, _, err = await bench("--url", server.url, "--requests", "1", env={"PYTHONPATH": str(tmp_path)})
        assert status == 0, err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--url", "ftp://host"), "--url is an address such as http://host:8000 or grpc://host:9000"),
        (("--url", "http://host:port"), "--url is an address"),
        (("--rate", "0"), "--rate must be above 0"),
        (("--burstiness", "-1"), "--burstiness must be above 0"),
        (("--duration", "soon"), "--duration is a time such as 2s"),
        (("--timeout", "0s"), "--timeout is a time such as 2s"),
        (("--prompt-tokens", "many"), "--prompt-tokens is a length"),
        (("--answer-tokens", "uniform:9"), "--answer-tokens is a length"),
        (("--images", "no-such-folder"), "cannot read no-such-folder: no such file"),
        (("--extra", "[1]"), "--extra is a JSON object"),
        (("--slo", "speed=1s"), "--slo is a list such as ttft=500ms"),
        (("--plot", "a.txt"), "--plot writes .svg, .png, .pdf"),
        (("--json", "no-such-folder/a.json"), "cannot write no-such-folder/a.json"),
    ],
)
def test_a_wrong_word_is_named(words: tuple[str, ...], complaint: str) -> None:
    done = ziya("bench", *(words if "--url" in words else ("--url", "http://127.0.0.1:1", *words)))
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr


def test_where_nobody_listens_the_address_is_named() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        over_http, over_grpc = (ziya("bench", "--url", f"{kind}://127.0.0.1:{port}") for kind in ("http", "grpc"))
    assert (over_http.returncode, over_grpc.returncode) == (1, 1)
    assert f"nothing answers at http://127.0.0.1:{port}/v1" in over_http.stderr
    assert "the first question was not answered (grpc UNAVAILABLE)" in over_grpc.stderr


def test_without_a_stack_it_says_how_to_start_one(tmp_path: Path) -> None:
    done = ziya("bench", env={"XDG_STATE_HOME": str(tmp_path)})
    assert done.returncode == 1
    assert "no stack is running on this machine: start one with `ziya up`" in done.stderr
