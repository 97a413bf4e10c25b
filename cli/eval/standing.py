"""A leaderboard as tables for people, as JSON, and as a line a verdict."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from training.leaderboard.board import CONFIDENCE, DRAWS, Board
from training.leaderboard.contest import JUDGE, Contest, Judged
from training.leaderboard.judge import Bias
from training.leaderboard.strengths import PRIOR
from training.llm.estimate import Estimate


def lines(standing: Board, found: Judged) -> Iterator[str]:
    """The tables, in Markdown."""
    yield "| rank | model | score | 95 % interval | won | tied | lost | remark |"
    yield "| ---: | --- | ---: | ---: | ---: | ---: | ---: | --- |"
    for row in standing.rows:
        span = f"{row.low:.0f} to {row.high:.0f}"
        counts = f"{row.wins} | {row.ties} | {row.losses}"
        yield f"| {row.rank} | {row.name} | {row.score:.0f} | {span} | {counts} | {row.note} |"
    yield ""
    yield from _matrix(standing)
    yield ""
    yield _bias(standing.bias)
    if len(standing.groups) > 1:
        yield f"never compared, even through others: {' / '.join(', '.join(group) for group in standing.groups)}"
    if found.failed:
        reasons = Counter(failure.reason for failure in found.failed)
        yield f"without a verdict: {', '.join(f'{reason} {count}' for reason, count in reasons.most_common())}"


def estimate_lines(costs: Mapping[str, Estimate]) -> Iterator[str]:
    """Of a dry run. The token counts are estimates."""
    yield "| to ask | requests | known already | prompt tokens, about | of answers, at most | $, about | $, at most |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, cost in costs.items():
        counts = f"{cost.requests} | {cost.cached} | {cost.prompt_tokens} | {cost.completion_tokens_at_most}"
        yield f"| {name} | {counts} | {cost.dollars_about:.4f} | {cost.dollars_at_most:.4f} |"
    about = sum(cost.dollars_about for cost in costs.values())
    most = sum(cost.dollars_at_most for cost in costs.values())
    yield f"| all | | | | | {about:.4f} | {most:.4f} |"


def as_dict(standing: Board, found: Judged, contest: Contest) -> dict[str, Any]:
    """Everything that the tables show, and how it came about; no keys."""
    models = {
        one.name: {"url": one.endpoint.base_url, "model": one.endpoint.model} if one.endpoint else "answers"
        for one in contest.contestants
    }
    return {
        "models": models,
        JUDGE: {"url": contest.judge.base_url, "model": contest.judge.model, **asdict(contest.judging)},
        "questions": len(contest.asked),
        "judged_questions": standing.questions,
        "fit": {"model": "Bradley-Terry, ties half wins", "prior": PRIOR, "draws": DRAWS, "confidence": CONFIDENCE},
        "rows": [asdict(row) for row in standing.rows],
        "won": standing.won,
        "groups": standing.groups,
        "position": asdict(standing.bias),
        "without_verdict": dict(Counter(failure.reason for failure in found.failed)),
    }


def judgement_lines(found: Judged) -> Iterator[str]:
    """`won` is by `one`; `verdicts` are those of both orders, none where no judge was needed."""
    for pair in found.pairs:
        orders = [
            {"first": first, "verdict": verdict, "reason": reason}
            for first, verdict, reason in zip((pair.one, pair.two), pair.orders or (), pair.reasons, strict=False)
        ]
        line = {"id": pair.key, "one": pair.one, "two": pair.two, "won": pair.won, "verdicts": orders}
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _matrix(standing: Board) -> Iterator[str]:
    names = [row.name for row in standing.rows]
    yield "| won against, % | " + " | ".join(names) + " |"
    yield "| --- |" + " ---: |" * len(names)
    for one in names:
        shares = (standing.won[one].get(two) for two in names)
        yield f"| {one} | " + " | ".join("" if share is None else f"{share:.0%}"[:-1] for share in shares) + " |"


def _bias(bias: Bias) -> str:
    if not bias.pairs:
        return "the judge was asked about no pair"
    first, second, mixed = (f"{count / bias.pairs:.0%}" for count in (bias.first, bias.second, bias.mixed))
    return (
        f"the judge said the same in both orders of {bias.same / bias.pairs:.0%} of {bias.pairs} pairs; "
        f"in {first} it took the first answer both times, in {second} the second, in {mixed} a tie in one order"
    )
