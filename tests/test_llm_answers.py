"""What a server can send instead of an answer, and what is made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.llm_server import LlmServer, Rule, Troubles
from tests.local_http import Quiet, serving
from tests.openai_server import ManualClock
from training.errors import BadConfig, EndpointGone
from training.llm.asker import TRIES, Asker
from training.llm.endpoint import Endpoint, Price
from training.llm.ledger import Ledger
from training.llm.question import Answer, Failure, Question
from training.llm.tokens import likely

PAIR = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
    "additionalProperties": False,
}


@pytest.fixture
def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as file:
        yield file


def question(text: str = "A red ball.", schema: object = None, **more: object) -> Question:
    return Question(({"role": "user", "content": text},), schema, **more)


async def put(ledger: Ledger, asked: Question, troubles: Troubles, rule: Rule | None = None) -> tuple:
    """The answer, the same from the ledger, and the server's counts."""
    async with LlmServer(*([rule] if rule else []), troubles=troubles) as server:
        endpoint = Endpoint(server.url, "m", price=Price(1.0, 2.0))
        async with Asker(endpoint, ledger) as asker:
            first, second = await asker.ask(asked), await asker.ask(asked)
            assert asker.recall(asked) == second
        return first, second, server.counts()


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [("refuse", "refused"), ("filter", "filtered"), ("truncate", "truncated")],
)
async def test_what_would_only_cost_again_is_asked_once(ledger: Ledger, trouble: str, reason: str) -> None:
    first, second, counts = await put(ledger, question(), Troubles(**{trouble: 1}))
    assert isinstance(first, Failure)
    assert (first.reason, first) == (reason, second)
    assert counts["requests"] == ledger.spent().requests == 1
    assert ledger.spent().dollars > 0


async def test_an_empty_answer_is_asked_for_again_and_then_given_up(ledger: Ledger) -> None:
    first, second, counts = await put(ledger, question(), Troubles(empty=1))
    assert first == second == Failure("empty", "the model said nothing")
    assert counts["requests"] == TRIES
    assert set(counts["paid"].values()) == {1}


@pytest.mark.parametrize("trouble", ["broken", "misfit"])
async def test_an_answer_that_is_not_to_the_schema_is_asked_for_again_under_another_seed(
    ledger: Ledger, trouble: str
) -> None:
    first, second, counts = await put(ledger, question(schema=PAIR), Troubles(**{trouble: 1}))
    assert isinstance(first, Answer)
    assert set(first.value) == {"question", "answer"}
    assert (first.cached, second.cached, second.value) == (False, True, first.value)
    assert counts["requests"] == ledger.spent().requests == 2


async def test_what_never_fits_the_schema_fails_with_the_reason(ledger: Ledger) -> None:
    first, second, counts = await put(ledger, question(schema=PAIR), Troubles(), lambda *_: {"question": 3})
    assert first == second
    assert first.reason == "schema"
    assert "answer" in first.detail or "3" in first.detail
    assert counts["requests"] == TRIES
    never, _, _ = await put(ledger, question("B", schema=PAIR), Troubles(), lambda *_: "Sure! Here it is: {")
    assert never.reason == "broken JSON"


@pytest.mark.parametrize("text", ["NaN", "[1, Infinity]"])
async def test_what_is_json_to_python_only_is_broken(ledger: Ledger, text: str) -> None:
    first, _, _ = await put(ledger, question(schema={}), Troubles(), lambda *_: text)
    assert first.reason == "broken JSON"


async def test_json_that_cannot_be_written_or_read_is_broken(ledger: Ledger) -> None:
    for text in (r'{"a": "\ud800"}', "[" * 100_000, "1" * 5000):
        found, _, _ = await put(ledger, question(text[:20], schema={}), Troubles(), lambda *_, text=text: text)
        assert found.reason == "broken JSON", text[:20]


async def test_half_a_character_is_kept_as_a_mark(ledger: Ledger) -> None:
    found, again, _ = await put(ledger, question(), Troubles(), lambda *_: "cut \ud83d here")
    assert found.text.startswith("cut ")
    assert found.text == again.text == found.text.encode().decode()


ODD = [
    b"",
    b"null",
    b"[]",
    b"17",
    b'"text"',
    b"{}",
    b'{"error": {"message": "busy"}}',
    b'{"choices": null}',
    b'{"choices": {}}',
    b'{"choices": [null]}',
    b'{"choices": [{}]}',
    b'{"choices": [{"message": null}]}',
    b'{"choices": [{"message": {"content": 3}}]}',
    b'{"choices": [{"message": {"content": ["a"]}}]}',
    b'{"choices": [{"message": {"content": "a"',
    b"<html>busy</html>",
]


@pytest.mark.parametrize("body", ODD)
@pytest.mark.parametrize("kind", ["application/json", "text/html"])
async def test_what_is_no_completion_is_weather(ledger: Ledger, body: bytes, kind: str) -> None:
    class Odd(Quiet):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(200, body, kind)

    clock = ManualClock()
    with serving(Odd) as port:
        endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", "m", max_attempts=2, patience=1.0)
        async with Asker(endpoint, ledger, clock=clock, sleep=clock.sleep) as asker:
            with pytest.raises(EndpointGone):
                await asker.ask(question())
    assert ledger.spent().requests == 0


@pytest.mark.parametrize("usage", ['{"prompt_tokens": -5, "completion_tokens": 2}', '{"prompt_tokens": "many"}', "{}"])
async def test_usage_that_cannot_be_is_estimated(ledger: Ledger, usage: str) -> None:
    choice = '{"message": {"content": "a red ball"}, "finish_reason": null}'
    body = f'{{"choices": [{choice}], "usage": {usage}}}'

    class Strange(Quiet):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(200, body.encode(), "application/json")

    with serving(Strange) as port:
        async with Asker(Endpoint(f"http://127.0.0.1:{port}/v1", "m"), ledger) as asker:
            found = await asker.ask(question())
    assert isinstance(found, Answer)
    assert (found.text, ledger.spent().estimated) == ("a red ball", 1)
    assert found.prompt_tokens > 0


async def test_json_in_a_fence_is_read(ledger: Ledger) -> None:
    first, second, counts = await put(ledger, question(schema=PAIR), Troubles(fenced=1))
    assert set(first.value) == {"question", "answer"}
    assert (first.value, counts["requests"]) == (second.value, 1)


async def test_usage_that_is_missing_is_estimated_and_said_to_be(ledger: Ledger) -> None:
    first, _, _ = await put(ledger, question("a" * 400), Troubles(no_usage=1))
    spent = ledger.spent()
    assert (spent.estimated, spent.requests) == (1, 1)
    assert first.completion_tokens == likely(first.text) > 0
    assert 100 <= first.prompt_tokens <= 150
    assert spent.dollars == pytest.approx((first.prompt_tokens + 2 * first.completion_tokens) / 1e6)


async def test_a_schema_that_is_none_stops_everything(ledger: Ledger) -> None:
    """Before anything is paid for."""
    async with LlmServer() as server:
        async with Asker(Endpoint(server.url, "m"), ledger) as asker:
            with pytest.raises(BadConfig, match="not a JSON schema"):
                await asker.ask(question(schema={"type": "no such type"}))
        assert server.requests == 0


async def test_a_question_that_the_server_will_not_read_fails_alone(ledger: Ledger) -> None:
    """One in three, by content; at the front of the line they are not many enough to blame the set-up."""
    asked = [question(f"ball {number}") for number in range(30)]
    async with (
        LlmServer(troubles=Troubles(bad_request=3)) as server,
        Asker(Endpoint(server.url, "m", concurrency=1), ledger) as asker,
    ):
        found = [known async for _, known in asker.ask_all(enumerate(asked))]
    kinds = Counter(type(known).__name__ for known in found)
    assert kinds["Failure"] > 2
    assert kinds["Answer"] > 10
    assert {known.reason for known in found if isinstance(known, Failure)} == {"bad request"}


async def test_bad_requests_and_nothing_else_are_a_wrong_set_up(ledger: Ledger) -> None:
    async with LlmServer(troubles=Troubles(bad_request=1)) as server:
        async with Asker(Endpoint(server.url, "m", concurrency=2), ledger) as asker:
            with pytest.raises(BadConfig, match=r"v1, model m: .*I cannot read this"):
                async for _ in asker.ask_all((number, question(str(number))) for number in range(1000)):
                    pass
        assert server.requests < 20
    assert ledger.spent().requests == 0, "what a right set-up would answer may not be held against it"


async def test_failures_can_be_forgotten_and_what_they_cost_cannot(ledger: Ledger) -> None:
    await put(ledger, question(), Troubles(refuse=1))
    cost = ledger.spent()
    assert (ledger.forget("truncated"), ledger.forget("refused"), ledger.forget("")) == (0, 1, 0)
    again, _, _ = await put(ledger, question(), Troubles())
    assert isinstance(again, Answer)
    assert ledger.spent().dollars > cost.dollars > 0
