"""A whole contest: servers that answer, a judge, verdicts, kills; and files that people write."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests import leaderboard_rules as rules
from tests.llm_process import LlmProcess
from tests.llm_server import LlmServer, Troubles
from training.errors import BadConfig, BadData
from training.leaderboard.asked import read_asked
from training.leaderboard.board import board
from training.leaderboard.contest import Contest, answered, costs, judged
from training.leaderboard.contestant import Contestant, Said, check_names, read_answers
from training.leaderboard.judge import Judging
from training.llm.endpoint import Endpoint, Price
from training.llm.ledger import Ledger

RULES = {"good": rules.good, "fair": rules.fair, "poor": rules.poor, "judge": rules.judge}
PAIRS = 3


def write_questions(folder: Path, count: int) -> Path:
    Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    path = folder / "questions.jsonl"
    lines = [
        {"id": number, "image": "a.png", "question": {"en": f"What is at {number}?", "zh": f"第{number}处有什么东西？"}}
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    return path


def contest(url: str, path: Path, names: tuple[str, ...] = ("good", "fair", "poor"), **more: object) -> Contest:
    models = [Contestant(name, Endpoint(url, name, revision=name)) for name in names]
    return Contest(read_asked(path), models, Endpoint(url, "judge"), **more)


def nothing(_: str, __: int) -> None:
    pass


async def test_the_better_model_is_found_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    """However the judge's answers cross one another on the way."""
    path = write_questions(tmp_path, 30)
    async with LlmServer(rules=RULES, troubles=Troubles(jitter=0.05)) as server:
        with Ledger(tmp_path / "ledger.db") as ledger:
            held = contest(server.url, path)
            answers = await answered(held, ledger, None, nothing)
            found = await judged(held, answers, ledger, None, nothing)
            asked = server.requests
            assert len(found.pairs) == 60 * PAIRS
            again = await judged(held, await answered(held, ledger, None, nothing), ledger, None, nothing)
            assert (again, server.requests) == (found, asked)
        assert set(server.asked.values()) == {1}
    standing = board(["poor", "fair", "good"], found.pairs)
    assert standing.bias.same == standing.bias.pairs
    rows = standing.rows
    by_hand = [_better(answers, pair.key, pair.one, pair.two) for pair in found.pairs]
    assert [pair.won for pair in found.pairs] == by_hand
    assert [row.name for row in rows] == ["good", "fair", "poor"]
    assert [row.rank for row in rows] == [1, 2, 3]


def _better(answers: dict, key: str, one: str, two: str) -> float:
    """As the judge's rule has it."""
    first, second = (int(answers[name][key].text.split()[1].rstrip(":")) for name in (one, two))
    return 0.5 + 0.5 * ((first > second) - (second > first))


async def test_one_more_model_asks_only_what_is_new(tmp_path: Path) -> None:
    path = write_questions(tmp_path, 5)
    async with LlmServer(rules=RULES) as server:
        with Ledger(tmp_path / "ledger.db") as ledger:
            for names in (("good", "poor"), ("good", "fair", "poor")):
                held = contest(server.url, path, names)
                await judged(held, await answered(held, ledger, None, nothing), ledger, None, nothing)
        assert set(server.asked.values()) == {1}


async def test_a_judge_that_favours_a_place_is_found_out(tmp_path: Path) -> None:
    path = write_questions(tmp_path, 20)
    async with LlmServer(rules=RULES | {"judge": rules.takes_the_first}) as server:
        with Ledger(tmp_path / "ledger.db") as ledger:
            held = contest(server.url, path, ("good", "fair"))
            found = await judged(held, await answered(held, ledger, None, nothing), ledger, None, nothing)
    bias = board(["good", "fair"], found.pairs).bias
    assert bias.first > bias.pairs / 2
    assert bias.second == bias.mixed == 0
    assert bias.first + bias.same == bias.pairs
    assert all(pair.won == 0.5 for pair in found.pairs if pair.orders == ("A", "A"))


async def test_the_judge_sees_the_pictures_and_both_orders_in_the_questions_language(tmp_path: Path) -> None:
    path = write_questions(tmp_path, 1)
    async with LlmServer(rules=RULES) as server:
        server.keep_bodies = True
        with Ledger(tmp_path / "ledger.db") as ledger:
            held = contest(server.url, path, ("good", "poor"))
            answers = await answered(held, ledger, None, nothing)
            await judged(held, answers, ledger, None, nothing)
            seen = [body for body in server.bodies if body["model"] == "judge"]
            blind = replace(held, judging=Judging("en", sees=False))
            await judged(blind, answers, ledger, None, nothing)
        unseen = [body for body in server.bodies if body["model"] == "judge"][len(seen) :]
    texts = [body["messages"][1]["content"][-1]["text"] for body in seen]
    assert sorted("[问题]" in text for text in texts) == [False, False, True, True]
    english = [text for text in texts if "[Question]" in text]
    good, poor = answers["good"]["0/en"].text, answers["poor"]["0/en"].text
    assert sorted(text.index(good) < text.index(poor) for text in english) == [False, True]
    assert all(body["messages"][1]["content"][0]["type"] == "image_url" for body in seen)
    assert not any(part["type"] == "image_url" for body in unseen for part in body["messages"][1]["content"])
    assert all("impartial judge" in body["messages"][0]["content"] for body in unseen)


async def test_no_judge_is_needed_for_equal_answers_and_for_none(tmp_path: Path) -> None:
    path = write_questions(tmp_path, 3)
    same, none = Said("a dog"), Said("", "filtered: no")
    ready = {
        "a": {"0/en": same, "1/en": same, "2/en": none},
        "b": {"0/en": same, "1/en": none, "2/en": none, "0/zh": same},
    }
    held = Contest(
        read_asked(path), [Contestant(name, ready=said) for name, said in ready.items()], Endpoint("http://x/v1", "j")
    )
    with Ledger(tmp_path / "ledger.db") as ledger:
        found = await judged(held, await answered(held, ledger, None, nothing), ledger, None, nothing)
    assert {(pair.key, pair.won) for pair in found.pairs} == {("0/en", 0.5), ("1/en", 1.0), ("2/en", 0.5)}


async def test_a_judge_that_gives_no_verdict_is_counted_and_not_guessed(tmp_path: Path) -> None:
    path = write_questions(tmp_path, 20)

    def grumpy(messages: list, schema: object) -> object:
        return rules.judge(messages, schema) if "1" in messages[-1]["content"][-1]["text"] else {"verdict": "C"}

    async with LlmServer(rules=RULES | {"judge": grumpy}) as server:
        with Ledger(tmp_path / "ledger.db") as ledger:
            held = contest(server.url, path, ("good", "poor"), pairs=1)
            ready = {"good": "quality 8", "poor": "quality 3"}
            models = [
                Contestant(name, ready={one.key: Said(f"{text} of {one.key}") for one in held.asked})
                for name, text in ready.items()
            ]
            held = replace(held, contestants=models)
            found = await judged(held, await answered(held, ledger, None, nothing), ledger, None, nothing)
    with_one = sum("1" in one.key for one in held.asked)
    assert (len(found.pairs), len(found.failed)) == (with_one, 40 - with_one)
    assert {failure.reason for failure in found.failed} == {"schema"}


async def test_the_dry_run_knows_what_is_known(tmp_path: Path) -> None:
    path = write_questions(tmp_path, 4)
    async with LlmServer(rules=RULES) as server:
        with Ledger(tmp_path / "ledger.db") as ledger:
            held = contest(server.url, path)
            held = replace(held, judge=replace(held.judge, price=Price(5.0, 15.0)))
            before = costs(held, ledger)
            assert server.requests == 0
            assert [before[name].requests for name in ("good", "fair", "poor", "judge")] == [8, 8, 8, 8 * PAIRS * 2]
            found = await judged(held, await answered(held, ledger, None, nothing), ledger, None, nothing)
            after = costs(held, ledger)
            assert all(cost.requests == 0 for cost in after.values())
            assert len(found.pairs) == 8 * PAIRS
            assert 0 < ledger.spent().dollars < before["judge"].dollars_at_most


async def test_fewer_pairs_are_the_same_ones_tomorrow_and_all_in_turn(tmp_path: Path) -> None:
    held = replace(contest("http://x/v1", write_questions(tmp_path, 40)), pairs=1)
    answers = {one.name: {asked.key: Said("") for asked in held.asked} for one in held.contestants}
    met = [held.meetings(asked, answers) for asked in held.asked]
    assert all(len(pairs) == 1 for pairs in met)
    assert {pairs[0] for pairs in met} == {("fair", "good"), ("fair", "poor"), ("good", "poor")}
    backwards = replace(held, contestants=list(reversed(held.contestants)))
    assert met == [backwards.meetings(asked, answers) for asked in held.asked]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('{"question": "a", "image": "a.png"}', "`id`"),
        ('{"id": 1, "image": "a.png"}', "`question` is missing"),
        ('{"id": 1, "question": "a", "image": "b.png"}', "there is no .*b.png"),
        ('{"id": 1, "question": "a"}', "`image`"),
        ('{"id": 1, "question": {"fr": "a"}, "image": "a.png"}', "en"),
        ('{"id": 1, "question": " ", "image": "a.png"}', "empty"),
        ("[1]", "not an object"),
        ("{", "not JSON"),
        ("", "no questions"),
    ],
)
def test_a_question_that_cannot_be_asked_is_named_by_its_line(tmp_path: Path, line: str, word: str) -> None:
    path = write_questions(tmp_path, 0)
    path.write_text(line, "utf-8")
    with pytest.raises(BadData, match=rf"questions\.jsonl.*{word}"):
        read_asked(path)


def test_answers_may_be_ready(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    path.write_text('{"question_id": 7, "text": "ein"}\n{"id": "8", "answer": {"en": "a", "zh": ""}}\n', "utf-8")
    found = read_answers("b", path)
    assert found.ready["7"] == Said("ein")
    assert found.ready["8/en"] == Said("a")
    assert found.ready["8/zh"].failed
    path.write_text('{"id": 7, "text": "a"}\n{"id": "7", "text": "b"}\n', "utf-8")
    with pytest.raises(BadData, match=r"b\.jsonl:2: there is an answer to 7 already"):
        read_answers("b", path)
    with pytest.raises(BadConfig, match="two models are called b"):
        check_names([found, found])


def run(questions: Path, url: str, store: Path, *more: str) -> subprocess.Popen[str]:
    models = [word for name in ("good", "fair", "poor") for word in ("--model", f"{name}={url}#{name}")]
    command = [sys.executable, "-m", "cli.main", "eval", "leaderboard", str(questions), "--judge", f"{url}#judge"]
    command += [*models, "--store", str(store), *more]
    environment = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def named_rules() -> list[str]:
    return [word for name in RULES for word in ("--model-rule", f"{name}=tests.leaderboard_rules:{name}")]


def test_the_command_is_killed_and_asks_nothing_twice(tmp_path: Path) -> None:
    questions, store = write_questions(tmp_path, 12), tmp_path / "kept.sqlite"
    troubles = Troubles(delay=0.02, rate_limit=19, fenced=4)
    with LlmProcess(tmp_path / "paid.jsonl", troubles, *named_rules()) as server:
        for written in (20, 100):
            _kill(run(questions, server.url, store), store, written)
        with Ledger(store) as ledger:
            assert 100 <= ledger.spent().requests < 3 * 24 + 24 * PAIRS * 2
        board_file, verdicts = tmp_path / "board.json", tmp_path / "verdicts.jsonl"
        out, error = run(
            questions, server.url, store, "--json", str(board_file), "--judgements", str(verdicts)
        ).communicate()
        paid = server.counts()["paid"]
        with Ledger(store) as ledger:
            assert len(paid) == ledger.spent().requests
        assert set(paid.values()) == {1}
        requests = server.counts()["requests"]
        again, _ = run(questions, server.url, store).communicate()
        assert (again, server.counts()["requests"]) == (out, requests)
    found = json.loads(board_file.read_text("utf-8"))
    assert [row["name"] for row in found["rows"]] == ["good", "fair", "poor"], error
    assert found["won"]["good"]["poor"] > 0.6
    assert len(verdicts.read_text("utf-8").splitlines()) == 24 * PAIRS
    assert "| 1 | good |" in out
    assert "the judge said the same in both orders of 100% of" in out


async def test_keys_go_to_their_own_servers_and_into_no_file(tmp_path: Path) -> None:
    questions, board_file = write_questions(tmp_path, 2), tmp_path / "board.json"
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps(dict.fromkeys([*RULES], "secret-key")), "utf-8")
    async with LlmServer(rules=RULES, api_key="secret-key") as server:
        without = run(questions, server.url, tmp_path / "kept.sqlite")
        _, error = await asyncio.to_thread(without.communicate)
        assert without.returncode == 42
        assert "refuses the API key" in error
        given = run(questions, server.url, tmp_path / "kept.sqlite", "--keys", str(keys), "--json", str(board_file))
        out, error = await asyncio.to_thread(given.communicate)
    assert given.returncode == 0, error
    assert "secret" not in out + error + board_file.read_text("utf-8")
    assert b"secret" not in (tmp_path / "kept.sqlite").read_bytes()


def test_the_command_tells_mistakes_in_a_sentence(tmp_path: Path) -> None:
    questions = write_questions(tmp_path, 1)
    for more, word in (
        (["--model", "good=http://x/v1#good"], "two models are called good"),
        (["--model", "http://x/v1#good"], "NAME=URL#MODEL"),
        (["--price", "nobody=1,2"], "nobody"),
        (["--price", "good=1"], "NAME=IN,OUT"),
        (["--answers", f"b={tmp_path / 'none.jsonl'}"], "none.jsonl cannot be read"),
    ):
        process = run(questions, "http://127.0.0.1:9/v1", tmp_path / "kept.sqlite", *more)
        _, error = process.communicate()
        assert process.returncode == 42
        assert word in error
        assert "Traceback" not in error


def _kill(process: subprocess.Popen[str], store: Path, written: int) -> None:
    """When so much is written."""
    while process.poll() is None and _written(store) < written:
        time.sleep(0.01)
    process.kill()
    process.communicate()


def _written(store: Path) -> int:
    if not store.is_file():
        return 0
    with Ledger(store) as ledger:
        return ledger.spent().requests
