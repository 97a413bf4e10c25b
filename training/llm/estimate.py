"""The dry run: what questions would cost, asked of nobody.

An estimate it is: nobody but the server counts tokens. Equal questions count once. Each is taken to be answered at its
first try; what the ledger knows is free.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from training.llm.endpoint import Endpoint
from training.llm.ledger import Ledger
from training.llm.question import Question
from training.llm.tokens import likely_prompt, prompt_at_most

_MANY = 500


@dataclass(frozen=True)
class Estimate:
    """`requests` are to be made; `cached` questions are answered in the ledger already.

    `dollars_about` takes the likely `prompt_tokens`, `dollars_at_most` a bound on them; both take answers that are as
    long as is allowed.
    """

    requests: int
    cached: int
    prompt_tokens: int
    completion_tokens_at_most: int
    dollars_about: float
    dollars_at_most: float


def estimate(questions: Iterable[Question], endpoint: Endpoint, ledger: Ledger | None = None) -> Estimate:
    """Of any number of questions, in bounded memory: digests that were seen lie in a file that vanishes."""
    requests = cached = prompt = most = completion = 0
    with closing(sqlite3.connect("", isolation_level=None)) as seen:
        seen.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        seen.execute("PRAGMA journal_mode=OFF")
        for some in _batches(questions):
            new = _new({question.digest(endpoint): question for question in some}, seen)
            known = ledger.known(list(new)) if ledger else set()
            asked = [question for digest, question in new.items() if digest not in known]
            requests, cached = requests + len(asked), cached + len(known)
            prompt += sum(likely_prompt(question, endpoint) for question in asked)
            most += sum(prompt_at_most(question, endpoint) for question in asked)
            completion += sum(question.max_tokens for question in asked)
    dollars = endpoint.price.dollars
    return Estimate(requests, cached, prompt, completion, dollars(prompt, completion), dollars(most, completion))


def _new(questions: dict[str, Question], seen: sqlite3.Connection) -> dict[str, Question]:
    add = "INSERT OR IGNORE INTO seen VALUES (?)"
    seen.execute("BEGIN")
    new = {
        digest: question
        for digest, question in questions.items()
        if seen.execute(add, (bytes.fromhex(digest),)).rowcount
    }
    seen.execute("COMMIT")
    return new


def _batches(questions: Iterable[Question]) -> Iterator[list[Question]]:
    source = iter(questions)
    while some := list(islice(source, _MANY)):
        yield some
