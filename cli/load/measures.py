"""From answers to figures. Pure arithmetic; times in seconds, percentiles interpolated between the nearest two.

Latencies are those of answered requests alone; the failed ones are counted, by kind, and never among them. Rates are
over the whole run, from its start to the last end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cli.load.request import Answer
from cli.load.slo import Objective

PERCENTILES = (50, 90, 95, 99)
STAGES = ("admission", "vision_queue", "vision", "visual_wait", "llama_queue", "prefill", "decode")


@dataclass(frozen=True)
class Spread:
    """Of `count` times."""

    count: int
    mean: float
    least: float
    p50: float
    p90: float
    p95: float
    p99: float
    most: float


@dataclass(frozen=True)
class ErrorKind:
    """How many requests failed so, and what the first of them was told."""

    kind: str
    count: int
    example: str


@dataclass(frozen=True)
class Goodput:
    """Requests answered within the objective. `share` is of all that ended, failed ones included."""

    objective: dict[str, float]
    good: int
    share: float
    requests_per_second: float


@dataclass(frozen=True)
class Tokens:
    """Of answered requests. `counted_from`: "usage", "pieces", or "usage of N, pieces of the others"."""

    counted_from: str
    prompt: int
    cached: int
    image: int
    completion: int
    pieces: int


@dataclass(frozen=True)
class Summary:
    """All figures of a run. A latency is None where no request has one."""

    seconds: float
    started: int
    succeeded: int
    failed: int
    unfinished: int
    requests_per_second: float
    tokens_per_second: float
    tokens: Tokens
    ttft: Spread | None
    itl: Spread | None
    tpot: Spread | None
    e2e: Spread | None
    send_lag: Spread | None
    goodput: Goodput | None
    errors: tuple[ErrorKind, ...]
    stages: dict[str, Spread]
    pictures: int
    reused: int
    follow_ups: int


def spread(times: Sequence[float]) -> Spread | None:
    if not times:
        return None
    p50, p90, p95, p99 = (float(value) for value in np.percentile(times, PERCENTILES))
    return Spread(len(times), float(np.mean(times)), min(times), p50, p90, p95, p99, max(times))


def summarise(answers: Sequence[Answer], seconds: float, objective: Objective | None = None) -> Summary:
    """`seconds` is how long the run lasted."""
    sent = [answer for answer in answers if answer.sent is not None]
    good = [answer for answer in answers if answer.succeeded]
    failed = [answer for answer in answers if answer.failure]
    names = sorted({name for answer in good for name in answer.stages}, key=_in_order)
    stages = {name: spread([answer.stages[name] for answer in good if name in answer.stages]) for name in names}
    tokens = _tokens(good)
    return Summary(
        seconds=seconds,
        started=len(answers),
        succeeded=len(good),
        failed=len(failed),
        unfinished=len(answers) - len(good) - len(failed),
        requests_per_second=len(good) / seconds,
        tokens_per_second=tokens.completion / seconds,
        tokens=tokens,
        ttft=spread([answer.ttft for answer in good if answer.ttft is not None]),
        itl=spread([gap for answer in good for gap in answer.gaps]),
        tpot=spread([answer.tpot for answer in good if answer.tpot is not None]),
        e2e=spread([answer.e2e for answer in good if answer.e2e is not None]),
        send_lag=spread([answer.sent - answer.intended for answer in sent if answer.sent is not None]),
        goodput=_goodput(good, len(failed), seconds, objective) if objective else None,
        errors=_errors(failed),
        stages={name: found for name, found in stages.items() if found},
        pictures=sum(answer.request.shown for answer in sent),
        reused=sum(answer.request.reused for answer in sent),
        follow_ups=sum(answer.request.follow_up for answer in sent),
    )


def _in_order(stage: str) -> tuple[int, str]:
    """As a request meets them; what is not known last."""
    return STAGES.index(stage) if stage in STAGES else len(STAGES), stage


def _tokens(good: Sequence[Answer]) -> Tokens:
    usages = [answer.usage for answer in good if answer.usage]
    told = {0: "pieces", len(good): "usage"}.get(len(usages), f"usage of {len(usages)}, pieces of the others")
    return Tokens(
        counted_from=told,
        prompt=sum(usage.prompt for usage in usages),
        cached=sum(usage.cached for usage in usages),
        image=sum(usage.image for usage in usages),
        completion=sum(answer.tokens for answer in good),
        pieces=sum(len(answer.pieces) for answer in good),
    )


def _goodput(good: Sequence[Answer], failed: int, seconds: float, objective: Objective) -> Goodput:
    met = sum(objective.met(answer) for answer in good)
    ended = len(good) + failed
    return Goodput(objective.limits, met, met / ended if ended else 0.0, met / seconds)


def _errors(failed: Sequence[Answer]) -> tuple[ErrorKind, ...]:
    failures = [answer.failure for answer in failed if answer.failure]
    counts = Counter(failure.kind for failure in failures)
    first = {failure.kind: str(failure) for failure in reversed(failures)}
    return tuple(ErrorKind(kind, count, first[kind]) for kind, count in counts.most_common())
