"""What is written is written once, is there after any death, and a budget holds for all who share the file."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests import llm_client
from tests.llm_process import LlmProcess
from tests.llm_server import LlmServer, Troubles
from training.errors import BadData, BudgetSpent
from training.llm.asker import Asker, estimate
from training.llm.call import Call
from training.llm.endpoint import Endpoint
from training.llm.ledger import Ledger
from training.llm.question import Answer

CALL = Call("text", "stop", 10, 5)
ONE, TWO = "1" * 64, "2" * 64
# What the server's content makes of the questions; the weather of each test comes on top.
CONTENT = Troubles(refuse=11, truncate=13, broken=5, misfit=7, empty=17, fenced=3)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as file:
        yield file


def client(url: str, path: Path, count: int, budget: float = 0.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.llm_client", url, str(path), str(count), str(budget)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> dict:
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    return json.loads(out)


async def collect(asker: Asker, count: int, found: list[tuple]) -> None:
    async for pair in asker.ask_all((number, llm_client.question(number)) for number in range(count)):
        found.append(pair)


def test_the_first_to_write_a_call_is_right(ledger: Ledger) -> None:
    assert ledger.keep(ONE, CALL, 0.5) == CALL
    with Ledger(ledger.path) as other:
        assert other.keep(ONE, replace(CALL, text="another"), 0.5) == CALL
        assert other.get(ONE) == CALL
        assert other.get(TWO) is None
        assert other.spent() == ledger.spent()
    assert (ledger.spent().requests, ledger.spent().dollars) == (1, 0.5)
    assert ledger.known([ONE, TWO]) == {ONE}


def test_a_budget_counts_what_is_paid_and_what_is_being_asked(ledger: Ledger) -> None:
    ledger.set_aside(ONE, 0.6, 1.0)
    with Ledger(ledger.path) as other, pytest.raises(BudgetSpent, match=r"\$1.0000, \$0.0000 is spent and \$0.6000"):
        other.set_aside(TWO, 0.5, 1.0)
    ledger.set_aside(ONE, 0.6, 1.0)  # the same question: it is not asked for twice
    ledger.keep(ONE, CALL, 0.1)
    assert (ledger.spent().dollars, ledger.spent().aside) == (0.1, 0.0)
    ledger.set_aside(TWO, 0.9, 1.0)
    ledger.free(TWO)
    assert ledger.spent().aside == 0.0


def test_what_was_being_asked_at_a_death_stays_set_aside(ledger: Ledger) -> None:
    ledger.set_aside(ONE, 0.6, 1.0)
    ledger.close()
    with Ledger(ledger.path) as again:
        assert again.spent().aside == 0.6
        with pytest.raises(BudgetSpent):
            again.set_aside(TWO, 0.5, 1.0)


def test_a_file_that_is_no_ledger_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"something else " * 100)
    with pytest.raises(BadData, match=r"ledger\.db: not a ledger"):
        Ledger(path)


def test_a_ledger_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadData, match="cannot be opened"):
        Ledger(tmp_path / "file" / "ledger.db")
    with pytest.raises(BadData, match="cannot be opened"):
        Ledger(tmp_path)


async def test_the_estimate_counts_equal_questions_once_and_known_ones_as_free(ledger: Ledger) -> None:
    async with LlmServer() as server:
        endpoint = Endpoint(server.url, "m", price=llm_client.PRICE)
        questions = [llm_client.question(number % 60) for number in range(120)]
        before = estimate(questions, endpoint, ledger)
        async with Asker(endpoint, ledger) as asker:
            for question in questions[:20]:
                await asker.ask(question)
        after = estimate(iter(questions), endpoint, ledger)
    assert (before.requests, before.cached) == (60, 0)
    assert (after.requests, after.cached) == (40, 20)
    assert after.completion_tokens_at_most == 40 * 60
    assert 0 < after.dollars_about < after.dollars_at_most
    assert after.dollars_at_most == pytest.approx(before.dollars_at_most * 40 / 60, rel=0.02)
    assert ledger.spent().dollars / 20 < before.dollars_at_most / 60


async def test_a_budget_is_never_exceeded_and_is_used_up(ledger: Ledger) -> None:
    """With the server's own count; the last answers are cheaper than was set aside, so that a little more is asked."""
    most = estimate([llm_client.question(0)], Endpoint("http://x/v1", "m", price=llm_client.PRICE)).dollars_at_most
    budget = 10.5 * most
    async with LlmServer() as server:
        endpoint = Endpoint(server.url, "m", concurrency=16, price=llm_client.PRICE)
        async with Asker(endpoint, ledger, budget) as asker:
            found: list[tuple] = []
            with pytest.raises(BudgetSpent):
                await collect(asker, 500, found)
        spent = ledger.spent()
        assert len(found) == len(server.paid) == spent.requests
        assert budget - most < spent.dollars <= budget
        assert spent.aside == 0.0
        async with Asker(endpoint, ledger, budget) as asker:
            assert isinstance(await asker.ask(llm_client.question(found[0][0])), Answer), "what is known is free"


async def test_what_may_have_been_paid_stays_set_aside(ledger: Ledger) -> None:
    async with LlmServer(troubles=Troubles(cut=1)) as server:
        endpoint = Endpoint(server.url, "m", price=llm_client.PRICE, timeout=1.0)
        async with Asker(endpoint, ledger, 1.0) as asker:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    await asker.ask(llm_client.question(0))
        assert ledger.spent().aside > 0
        server.troubles = Troubles()
        async with Asker(endpoint, ledger, 1.0) as asker:
            await asker.ask(llm_client.question(0))
        assert (ledger.spent().aside, ledger.spent().requests, set(server.paid.values())) == (0.0, 1, {1})


async def test_memory_does_not_grow_with_the_number_of_questions(ledger: Ledger) -> None:
    async def peak(count: int, start: int) -> int:
        tracemalloc.start()
        async with Asker(endpoint, ledger) as asker:
            async for _ in asker.ask_all((n, llm_client.question(n)) for n in range(start, start + count)):
                pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    async with LlmServer() as server:
        server.forgetful = True
        endpoint = Endpoint(server.url, "m", concurrency=8)
        await peak(50, 0)
        few, many = await peak(100, 1000), await peak(600, 2000)
    assert many < few + 100_000, "500 questions and answers are more"


def test_several_processes_share_a_ledger_and_a_budget(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with LlmProcess(tmp_path / "paid.jsonl", replace(CONTENT, rate_limit=9)) as server:
        processes = [client(server.url, path, 60) for _ in range(3)]
        digests = {result(process)["digest"] for process in processes}
        assert len(digests) == 1
        paid = server.counts()["paid"]
        with Ledger(path) as ledger:
            assert set(paid.values()) == {1}
            assert len(paid) == ledger.spent().requests
            budget = ledger.spent().dollars + 0.02
        processes = [client(server.url, path, 400, budget) for _ in range(3)]
        assert all(result(process)["budget_spent"] for process in processes)
        with Ledger(path) as ledger:
            assert budget - 0.01 < ledger.spent().dollars <= budget
            assert len(server.counts()["paid"]) == ledger.spent().requests


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_who_is_killed_again_and_again_pays_for_nothing_twice(tmp_path: Path, seed: int) -> None:
    """The clients die of SIGKILL at random moments. What they had written is not even asked for again."""
    chance = random.Random(seed)
    path, count = tmp_path / "ledger.db", 150
    with LlmProcess(tmp_path / "paid.jsonl", replace(CONTENT, cut=23, delay=0.01)) as server:
        for _ in range(3):
            _kill(client(server.url, path, count), path, chance.randrange(1, 50))
            known = _known(path)
            asked = {key: server.counts()["asked"][key] for key in known}
            result(client(server.url, path, 40))
            assert {key: server.counts()["asked"][key] for key in known} == asked
        last = result(client(server.url, path, count))
        paid = server.counts()["paid"]
        assert set(paid.values()) == {1}
        assert set(paid) == _known(path)
        undisturbed = result(client(server.url, tmp_path / "other.db", count))
    assert (last["answers"], last["digest"]) == (count, undisturbed["digest"])


def _kill(process: subprocess.Popen[str], path: Path, after: int) -> None:
    """When it has written so many calls more; or it ends before."""
    with Ledger(path) as ledger:
        until = ledger.spent().requests + after
        while process.poll() is None and ledger.spent().requests < until:
            time.sleep(0.002)
    process.kill()
    process.communicate()


def _known(path: Path) -> set[str]:
    with Ledger(path) as ledger:
        return {name.hex() for (name,) in ledger._file.execute("SELECT digest FROM calls")}
