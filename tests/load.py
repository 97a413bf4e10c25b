"""What the tests of `ziya bench` share: simple workloads and answers with known times."""

from __future__ import annotations

from cli.load.lengths import Lengths
from cli.load.request import Answer, Failed, Request, Usage
from cli.load.workload import Mix, Workload
from ziya.prompt import Turn


def question(number: int = 0) -> Request:
    return Request(number, (Turn("user", "What is this?"),), max_tokens=3)


def plain(follow_ups: float = 0.0, max_turns: int = 4) -> Workload:
    """Questions without pictures."""
    mix = Mix(Lengths.parse("8", "p"), Lengths.parse("3", "a"), follow_ups=follow_ups, max_turns=max_turns)
    return Workload(mix, None, seed=0, nonce=0)


def answered(
    pieces: list[float], ended: float, *, intended: float = 0.0, tokens: int | None = None, sent: float | None = None
) -> Answer:
    """Complete; with `tokens` the server has counted them."""
    counted = None if tokens is None else Usage(10, tokens, cached=4, image=2)
    sent = intended if sent is None else sent
    return Answer(question(), intended, sent, pieces, ended, "text", "stop", counted)


def failed(kind: str, message: str, *, ended: float = 1.0, pieces: list[float] | None = None) -> Answer:
    return Answer(question(), 0.0, 0.0, pieces or [], ended, failure=Failed(kind, message))
