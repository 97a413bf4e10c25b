"""`ziya eval` of a URL under kills, Ctrl-C, a server that goes and comes back, and weather: asked once, never lost."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.llm_server import LlmServer
from tests.openai_server import OpenAIServer, Raw, Script, openai_server
from tests.test_eval_command import ROOT, records, results
from tests.test_eval_url import Namer, asked, asking, calls
from training.errors import EndpointGone
from training.llm.endpoint import Endpoint
from training.scoring.evaluation import Examiner, Result
from training.scoring.item import Item
from training.scoring.store import Store
from training.scoring.tasks import TASKS
from training.scoring.url_target import UrlTarget

__all__ = ["records"]  # a fixture
ITEMS = 26
NOBODY = "http://127.0.0.1:9"


def by_name(messages: Sequence[Mapping[str, Any]], schema: object) -> str:
    """A rule of the language model's server."""
    return Namer(OpenAIServer([])).named(messages[0]["content"])


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
async def test_an_evaluation_that_is_stopped_goes_on_where_it_was(
    records: Path, tmp_path: Path, stop: signal.Signals, status: int
) -> None:
    async with openai_server() as server:
        namer, never = Namer(server), asyncio.Event()

        async def ten_answers(body: dict[str, Any]) -> None:
            if len(server.bodies) > 10:
                await never.wait()
            await namer.answer(body)

        server.before = ten_answers
        words = asking(server, records, tmp_path)
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(*words, cwd=ROOT, stdout=pipe, stderr=pipe)
        try:
            while len(kept := calls(tmp_path / "store" / "ledger.sqlite")) < 10 or server.in_flight < 8:
                assert child.returncode is None
                await asyncio.sleep(0.02)
            child.send_signal(stop)
            out, error = await child.communicate()
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        assert (child.returncode, out) == (status, b"")
        if stop is signal.SIGINT:
            assert error.decode().endswith("ziya: stopped; the same command goes on from here\n")
            assert "Traceback" not in error.decode()
        before = len(server.bodies)
        server.before = namer.answer
        await asked(words)
        again = [head["idempotency-key"] for head in server.heads[before:]]
        assert len(again) == len(set(again)) == ITEMS - len(kept)
        assert not kept & set(again)
        # And what was in flight came again under the name that it had.
        assert {head["idempotency-key"] for head in server.heads[:before]} - kept <= set(again)
        assert results(tmp_path)[0]["metrics"]["accuracy"] == 1.0
        # All is known: nobody need be there.
        asked_until_now = len(server.bodies)
        await asked(words)
        assert len(server.bodies) == asked_until_now
        await asked([*words, "--fresh"])
        assert len(server.bodies) == asked_until_now + ITEMS


async def test_a_server_that_goes_and_comes_back_is_waited_for(records: Path, tmp_path: Path) -> None:
    """One run: connections break, then nobody listens but to close, then the server is there again."""
    gone, knocks = asyncio.Event(), 0

    async def slam(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal knocks
        knocks += 1
        writer.close()

    def rule(messages: Sequence[Mapping[str, Any]], schema: object) -> str:
        if len(server.paid) >= 10:
            gone.set()
            raise ConnectionError
        return by_name(messages, schema)

    server = LlmServer(rule)
    async with server:
        port = server.port
        run = asyncio.create_task(asked(asking(server, records, tmp_path)))
        await asyncio.wait({run, asyncio.create_task(gone.wait())}, return_when=asyncio.FIRST_COMPLETED)
        assert not run.done(), run.result()
        await server.stop()
        async with await asyncio.start_server(slam, "127.0.0.1", port):
            while knocks < 8 and not run.done():
                await asyncio.sleep(0.02)
        second = await LlmServer(by_name).start(port)
        try:
            await run
        finally:
            await second.stop()
    assert knocks >= 8
    assert len(server.paid) == server.paid.total() == 10
    assert len(second.paid) == second.paid.total() == ITEMS - 10
    assert not server.paid.keys() & second.paid.keys()
    assert results(tmp_path)[0]["metrics"]["accuracy"] == 1.0


async def test_a_server_that_stays_away_loses_no_answer(tmp_path: Path) -> None:
    def echo(messages: Sequence[Mapping[str, Any]], schema: object) -> str:
        return str(messages[0]["content"][0]["text"])

    def five(messages: Sequence[Mapping[str, Any]], schema: object) -> str:
        if len(first.paid) >= 5:
            raise ConnectionError
        return echo(messages, schema)

    async def examined() -> Result:
        endpoint = Endpoint(first.url, "any", concurrency=2, max_attempts=1, patience=0.01)
        with Store(tmp_path / "answers.sqlite") as store:
            items = [Item(f"{n}", "en", (f"thing {n}",), f"thing {n}") for n in range(12)]
            examiner = Examiner(UrlTarget(endpoint, tmp_path / "ledger.sqlite", 16), store)
            return await examiner.answered(TASKS["exact"], items, lambda more: None)

    async with LlmServer(five) as first:
        with pytest.raises(EndpointGone, match="no answer for"):
            await examined()
    second = await LlmServer(echo).start(first.port)
    try:
        found = await examined()
    finally:
        await second.stop()
    assert (len(first.paid), found.cached, found.scores.metrics["accuracy"], found.failed) == (5, 5, 1.0, 0)
    assert len(second.paid) == second.paid.total() == 7
    assert not first.paid.keys() & second.paid.keys()


async def test_what_failed_for_the_moment_is_told_and_asked_again(records: Path, tmp_path: Path) -> None:
    """One question meets a 503 as often as it is asked; the run ends, and the next one asks that question alone."""
    async with openai_server() as server:
        namer, overloaded = Namer(server), json.dumps({"error": {"message": "this one is too much"}}).encode()

        async def all_but_the_lemon(body: dict[str, Any]) -> None:
            await namer.answer(body)
            if namer.named(body["messages"][0]["content"]) == "lemon":
                server.scripts = [
                    Script((Raw(overloaded),), 503, "application/json\r\nRetry-After: 0", "counted"),
                ]

        server.before = all_but_the_lemon
        words = asking(server, records, tmp_path)
        printed = await asked(words)
        assert "without an answer, English: 1, such as unavailable: HTTP 503: this one is too much" in printed
        assert "1 of these failed for the moment and count as wrong: the same command asks them again" in printed
        assert [one["failed_for_the_moment"] for one in results(tmp_path)] == [1]
        before, server.before = len(server.bodies), namer.answer
        assert "without an answer" not in await asked(words)
        assert len(server.bodies) == before + 1
    (result,) = results(tmp_path)
    assert (result["from_store"], result["without_answer"], result["metrics"]["accuracy"]) == (ITEMS - 1, 0, 1.0)


@pytest.mark.parametrize("is_here", [True, False])
async def test_a_proxy_of_the_environment_is_for_other_machines(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_here: bool
) -> None:
    """Also for the first question of all, which models there are. No machine is called model.invalid but the proxy."""
    async with openai_server() as server:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, NOBODY if is_here else server.url.removesuffix("/v1"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        server.before = Namer(server).answer
        words = asking(server, records, tmp_path)
        if not is_here:
            words = [word.replace(server.url, "http://model.invalid/v1") for word in words]
        assert (await asked(words)).startswith("fake-model\n")
        assert len(server.bodies) == ITEMS
    assert results(tmp_path)[0]["metrics"]["accuracy"] == 1.0
