"""What names a question, what an endpoint may be, and what a question is taken to cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from training.errors import BadConfig
from training.llm.endpoint import Endpoint, Price
from training.llm.question import Question
from training.llm.tokens import likely, likely_prompt, prompt_at_most

HERE = Endpoint("http://localhost:1/v1", "m")
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
ASKED = Question(({"role": "user", "content": "What is it? 这是什么？"},), SCHEMA, 64)


def test_a_digest_names_all_that_decides_the_answer() -> None:
    others = [
        replace(ASKED, messages=({"role": "user", "content": "What is this?"},)),
        replace(ASKED, messages=({"role": "system", "content": "What is it? 这是什么？"},)),
        replace(ASKED, schema=None),
        replace(ASKED, schema=SCHEMA | {"required": ["a"]}),
        replace(ASKED, max_tokens=65),
        replace(ASKED, temperature=0.1),
        replace(ASKED, seed=1),
        ASKED.again(1),
        ASKED.again(2),
    ]
    digests = {question.digest(HERE) for question in [ASKED, *others]}
    digests |= {ASKED.digest(replace(HERE, model="n")), ASKED.digest(replace(HERE, revision="2"))}
    assert len(digests) == 1 + len(others) + 2
    assert all(len(digest) == 64 for digest in digests)


def test_a_digest_is_of_the_content_only() -> None:
    same = Question(({"content": "What is it? 这是什么？", "role": "user"},), dict(SCHEMA), 64)
    assert same.digest(HERE) == ASKED.digest(HERE) == ASKED.again(0).digest(HERE)
    elsewhere = replace(HERE, url="http://other:2/v1", api_key="k", concurrency=3, timeout=1.0, price=Price(1, 1))
    assert ASKED.digest(elsewhere) == ASKED.digest(HERE)


def test_a_digest_is_the_same_tomorrow() -> None:
    """A ledger outlives the program: a change of this figure asks everything again, at everybody's cost."""
    question = Question(({"role": "user", "content": "hello"},), None, 16)
    assert question.digest(HERE) == "a4158b56d377c4fecda5a6d7ad4bc886628c94a970c955f7f062dd653b2c377d"


def test_an_endpoint_never_shows_its_key() -> None:
    assert "secret" not in repr(replace(HERE, api_key="secret"))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"url": "localhost:8000"}, "URL"),
        ({"url": "ftp://a/v1"}, "URL"),
        ({"url": "http://me:pass@host/v1"}, "password"),
        ({"model": ""}, "model"),
        ({"concurrency": 0}, "concurrency"),
        ({"requests_per_minute": 0.0}, "requests_per_minute"),
        ({"tokens_per_minute": -1.0}, "tokens_per_minute"),
        ({"price": Price(-1, 0)}, "price"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(change: dict[str, object], word: str) -> None:
    with pytest.raises(BadConfig, match=word):
        replace(HERE, **change)


def test_a_bare_host_means_its_v1() -> None:
    assert replace(HERE, url="http://host:8000").base_url == "http://host:8000/v1"
    assert replace(HERE, url="http://host:8000/").base_url == "http://host:8000/v1"
    assert replace(HERE, url="http://host/api/v3").base_url == "http://host/api/v3"


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:1/v1", True),
        ("http://127.9.9.9/v1", True),
        ("http://localhost/v1", True),
        ("http://[::1]:8/v1", True),
        ("http://10.0.0.1/v1", False),
        ("http://localhost.example/v1", False),
    ],
)
def test_what_is_on_this_machine_is_known(url: str, here: bool) -> None:
    assert replace(HERE, url=url).is_here is here


def test_tokens_are_estimated_by_script_and_bounded_by_bytes() -> None:
    assert likely("a" * 40) == 10
    assert likely("猫" * 40) == 40
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 90_000}}
    seen = Question(({"role": "user", "content": [image, {"type": "text", "text": "猫" * 100}]},), None, 8)
    with_images = replace(HERE, image_tokens=500)
    assert 600 <= likely_prompt(seen, with_images) < prompt_at_most(seen, with_images)
    assert 800 <= prompt_at_most(seen, with_images) < 900


def test_a_price_is_for_a_million() -> None:
    assert Price(2.0, 8.0).dollars(500_000, 250_000) == pytest.approx(3.0)
