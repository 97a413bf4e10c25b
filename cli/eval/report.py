"""An evaluation as a table for people, as JSON, and as one line an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cli.eval.plan import Plan
from cli.eval.run import Found
from training.scoring.evaluation import Result
from training.scoring.gap import Gap

NAMES = {"en": "English", "zh": "Chinese"}


def lines(found: Found) -> Iterator[str]:
    """The tables, in Markdown. All figures but counts are times 100, as papers give them (CIDEr-D: 100 is 1.0)."""
    yield f"{found.name}"
    for name in dict.fromkeys(result.task.name for result in found.results):
        some = [result for result in found.results if result.task.name == name]
        yield ""
        yield from _table(some)
        yield from _kinds(some)
        yield from _remarks(some)
    if found.gaps:
        yield ""
        yield "Chinese less English, on the same items (95 % interval; * when it excludes 0):"
        yield ""
        yield "| task, metric | items | English | Chinese | difference | interval | McNemar p |"
        yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
        yield from (_gap_row(task.name, one) for task, one in found.gaps)


def _table(results: Sequence[Result]) -> Iterator[str]:
    metrics = dict.fromkeys(metric for result in results for metric in result.scores.metrics)
    yield f"| {results[0].task.name} | " + " | ".join(NAMES[result.language] for result in results) + " |"
    yield "| --- |" + " ---: |" * len(results)
    yield "| items | " + " | ".join(str(len(result.items)) for result in results) + " |"
    for metric in metrics:
        cells = (_hundredfold(result.scores.metrics.get(metric)) for result in results)
        yield f"| {metric} | " + " | ".join(cells) + " |"


def _kinds(results: Sequence[Result]) -> Iterator[str]:
    for result in results:
        kinds = result.kinds()
        if not kinds:
            continue
        metrics = list(result.scores.each)
        yield ""
        yield f"| {result.task.name}, {NAMES[result.language]} | items | " + " | ".join(metrics) + " |"
        yield "| --- |" + " ---: |" * (1 + len(metrics))
        for kind, scores in kinds.items():
            cells = [str(int(scores["items"])), *(_hundredfold(scores[metric]) for metric in metrics)]
            yield f"| {kind or 'other'} | " + " | ".join(cells) + " |"


def _remarks(results: Sequence[Result]) -> Iterator[str]:
    for result in results:
        yield from (f"{NAMES[result.language]}: {note}" for note in result.notes)
        if result.bad:
            yield f"left out, {NAMES[result.language]}: {len(result.bad)}, such as {result.bad[0]}"
        if result.failed:
            reason = next(one.failed for one in result.said if one.failed)
            yield f"without an answer, {NAMES[result.language]}: {result.failed}, such as {reason}"
        if result.unavailable:
            again = "failed for the moment and count as wrong: the same command asks them again"
            yield f"{result.unavailable} of these {again}"


def _gap_row(task: str, one: Gap) -> str:
    difference = f"{100 * one.difference:+.1f}{' *' if one.significant else ''}"
    interval = f"{100 * one.low:+.1f} … {100 * one.high:+.1f}"
    p = "" if one.p is None else f"{one.p:.2g}"
    means = f"{100 * one.en:.1f} | {100 * one.zh:.1f}"
    return f"| {task}, {one.metric} | {one.items} | {means} | {difference} | {interval} | {p} |"


def _hundredfold(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def as_dict(found: Found, plan: Plan) -> dict[str, Any]:
    """Every figure, unrounded and not times 100."""
    return {
        "target": {"name": found.name, "given": plan.target, **found.identity},
        "settings": {name: _plain(value) for name, value in asdict(plan).items() if name not in ("target", "store")},
        "results": [_result(result) for result in found.results],
        "gaps": [{"task": task.name, **asdict(one), "significant": one.significant} for task, one in found.gaps],
    }


def _result(result: Result) -> dict[str, Any]:
    return {
        "task": result.task.name,
        "language": result.language,
        "items": len(result.items),
        "left_out": len(result.bad),
        "without_answer": result.failed,
        "failed_for_the_moment": result.unavailable,
        "from_store": result.cached,
        "question": result.items[0].question,
        "metrics": dict(result.scores.metrics),
        "kinds": result.kinds(),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value if isinstance(value, int | str | None) else str(value)


def predictions(found: Found) -> Iterator[str]:
    """One JSON line an answer."""
    for result in found.results:
        for place, (item, said) in enumerate(zip(result.items, result.said, strict=True)):
            line = {
                "task": result.task.name,
                "language": result.language,
                "key": item.key,
                "question": item.question,
                "answer": said.text,
                "failed": said.failed,
                "truths": item.truths,
                "scores": {name: each[place] for name, each in result.scores.each.items()},
            }
            yield json.dumps(line, ensure_ascii=False) + "\n"
