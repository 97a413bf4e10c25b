"""What a run found, as a person reads it and as a program does."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cli.load.measures import Spread, Summary
from cli.load.request import Answer

SCHEMA = 1
PACKAGES = ("ziya-visual", "grpcio", "httpx", "numpy")
LATENCIES = {
    "ttft": "time to first token",
    "itl": "between pieces of text (ITL)",
    "tpot": "per token after the first",
    "e2e": "whole answer",
    "send_lag": "sent later than intended",
}


def lines(summary: Summary, *, objective: str = "", open_loop: bool) -> Iterator[str]:
    """The table. Times in milliseconds."""
    yield from _counts(summary)
    shown = {name: title for name, title in LATENCIES.items() if open_loop or name != "send_lag"}
    found = {title: getattr(summary, name) for name, title in shown.items()}
    yield from _table({title: spread for title, spread in found.items() if spread}, "milliseconds")
    yield from _table(summary.stages, "stages, as the server says")
    if summary.goodput:
        good, rate = summary.goodput, summary.goodput.requests_per_second
        ended = summary.succeeded + summary.failed
        yield ""
        yield f"goodput      {rate:.2f} requests/s: {good.good} of {ended} ({good.share:.0%}) within {objective}"
    if summary.errors:
        yield ""
        yield "errors"
        yield from (f"  {error.count:>6} × {error.kind}: {error.example}" for error in summary.errors)


def as_dict(summary: Summary, answers: Sequence[Answer], about: dict[str, Any]) -> dict[str, Any]:
    """Every figure, how it was measured, and each request. Times in seconds, those of requests from the run's start."""
    figures = asdict(summary)
    return {
        "schema": SCHEMA,
        **about,
        "client": _client(),
        "summary": figures,
        "requests": [_request(answer) for answer in answers],
    }


def _counts(summary: Summary) -> Iterator[str]:
    tokens = summary.tokens
    lost = f", {summary.failed} failed" + (f", {summary.unfinished} not ended" if summary.unfinished else "")
    yield f"requests     {summary.succeeded} of {summary.started} answered{lost}, in {summary.seconds:.2f} s"
    yield f"requests/s   {summary.requests_per_second:.2f}"
    counted = f"{tokens.completion} tokens, counted from {tokens.counted_from}"
    yield f"tokens/s     {summary.tokens_per_second:.1f} ({counted})"
    if tokens.prompt:
        parts = f"{tokens.image} of pictures, {tokens.cached} from a cache"
        yield f"prompts      {tokens.prompt} tokens, {tokens.prompt / summary.succeeded:.0f} a request; {parts}"
    if summary.pictures or summary.follow_ups:
        pictures = f"{summary.pictures} pictures, {summary.reused} of them shown before"
        yield f"of these     {pictures}; {summary.follow_ups} follow-up questions"


def _table(rows: dict[str, Spread], title: str) -> Iterator[str]:
    if not rows:
        return
    heads = ("mean", "p50", "p90", "p95", "p99", "most")
    yield ""
    yield f"{title:<30}" + "".join(f"{head:>10}" for head in heads)
    for name, spread in rows.items():
        digits = 0 if spread.p50 >= 1 else 1 if spread.p50 >= 0.01 else 2
        cells = (f"{1000 * getattr(spread, head):.{digits}f}" for head in heads)
        yield f"{name.replace('_', ' '):<30}" + "".join(f"{cell:>10}" for cell in cells)


def _request(answer: Answer) -> dict[str, Any]:
    request, failure = answer.request, answer.failure
    return {
        "number": request.number,
        "intended": answer.intended,
        "sent": answer.sent,
        "pieces": [round(at, 6) for at in answer.pieces],
        "ended": answer.ended,
        "max_tokens": request.max_tokens,
        "turns": len(request.turns),
        "pictures": request.shown,
        "reused": request.reused,
        "finish_reason": answer.finish_reason,
        "usage": asdict(answer.usage) if answer.usage else None,
        "stages": answer.stages,
        "error": {"kind": failure.kind, "message": str(failure)} if failure else None,
    }


def _client() -> dict[str, Any]:
    """The machine that the load came from: a slow one measures itself."""
    return {
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_at_end": os.getloadavg()[0],
        "packages": {name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
