"""A TrainingJob as a page for people: how far each stage is, what holds it up, and how the last attempt failed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.training_jobs import Object

COLORS = {"Running": "green", "Succeeded": "green", "Complete": "green", "Failed": "red", "Backoff": "yellow"}
LISTED = ("NAME", "PHASE", "STAGE", "STEP", "LOSS", "ETA", "ATTEMPT", "AGE")
STAGE_COLUMNS = ("STAGE", "TYPE", "PHASE", "ATTEMPT", "RESTARTS", "DISRUPTIONS", "STEP", "LOSS", "ETA", "SPEED")
WIDE = 10_000
# What goes without saying.
QUIET = {("Accepted", "True"), ("Suspended", "False"), ("Complete", "False"), ("Failed", "False")}


def page(job: Object, now: datetime) -> RenderableType:
    """All of it."""
    parts: list[RenderableType] = [_head(job, now), *_conditions(job), Text(), _stages(job, now)]
    if failure := _last_failure(job):
        parts += [Text(), *_failure(*failure, now)]
    return Group(*parts)


def rows(jobs: list[Object], now: datetime, *, everywhere: bool) -> Table:
    """The columns of kubectl."""
    table = _table(*(["NAMESPACE"] if everywhere else []), *LISTED)
    for job in jobs:
        meta, status = job["metadata"], job.get("status", {})
        display = status.get("display", {})
        figures = [display.get(name, "") for name in ("step", "loss", "eta", "attempt")]
        place = [meta["namespace"]] if everywhere else []
        phase = _colored(status.get("phase", "Pending"))
        table.add_row(
            *place,
            meta["name"],
            phase,
            status.get("currentStage", ""),
            *figures,
            _since(meta["creationTimestamp"], now),
        )
    return table


def show(what: RenderableType) -> None:
    """On stdout, with lines as long as they are: a narrow terminal breaks them, and nothing is cut off."""
    Console(width=WIDE).print(what)


def _head(job: Object, now: datetime) -> Text:
    meta, status = job["metadata"], job.get("status", {})
    text = Text(f"{meta['name']}  ", style="bold")
    text.append_text(_colored(status.get("phase", "Pending")))
    text.append(
        f"  namespace {meta['namespace']}, submitted {_since(meta['creationTimestamp'], now)} ago", style="default"
    )
    if job["spec"].get("suspend"):
        text.append(", suspended")
    if not status:
        text.append("\n  no operator has looked at it yet: is one running?")
    return text


def _conditions(job: Object) -> Iterator[Text]:
    for condition in job.get("status", {}).get("conditions", []):
        kind, truth = condition["type"], condition["status"]
        if (kind, truth) in QUIET and not (kind == "Accepted" and condition.get("message")):
            continue
        sign = "" if truth == "True" else f"={truth}"
        yield Text(f"  {kind}{sign} ({condition['reason']}) {condition.get('message', '')}".rstrip())


def _stages(job: Object, now: datetime) -> Table:
    table = _table(*STAGE_COLUMNS)
    states = {state["name"]: state for state in job.get("status", {}).get("stages", [])}
    for stage in job["spec"]["stages"]:
        state = states.get(stage["name"], {})
        counts = [str(state.get(name, 0) or "") for name in ("attempt", "restarts", "disruptions")]
        table.add_row(stage["name"], stage["type"], _colored(_phase(state, now)), *counts, *_figures(stage, state))
    return table


def _phase(state: Object, now: datetime) -> str:
    phase = str(state.get("phase", "Pending"))
    if phase == "Backoff" and "nextAttemptTime" in state:
        left = (_time(state["nextAttemptTime"]) - now).total_seconds()
        return f"Backoff {duration(left)}" if left > 0 else phase
    return phase


def _figures(stage: Object, state: Object) -> list[str]:
    """Step, loss, time left, speed."""
    if stage["type"] == "data":
        return [f"{len(state.get('shards', []))}/{stage.get('shards', 1)} pieces", "", "", ""]
    if canary := state.get("canary"):
        return [f"{canary['percent']} %", "", "", ""]
    told = state.get("progress", {})
    if not told:
        step = state.get("artifact", {}).get("step")
        return [str(step or ""), "", "", ""]
    loss = f"{told['loss']:.4g}" if "loss" in told else ""
    running = state.get("phase") == "Running"
    eta = duration(told["etaSeconds"]) if "etaSeconds" in told and running else ""
    speed = f"{told['tokensPerSecond']:,.0f} tokens/s" if "tokensPerSecond" in told and running else ""
    return [f"{told.get('step', 0)}/{told.get('total', '?')}", loss, eta, speed]


def _last_failure(job: Object) -> tuple[str, Object] | None:
    """Of the latest time."""
    states = job.get("status", {}).get("stages", [])
    failed = [(state["name"], state["lastFailure"]) for state in states if "lastFailure" in state]
    return max(failed, key=lambda one: one[1].get("time", ""), default=None)


def _failure(stage: str, failure: Object, now: datetime) -> Iterator[Text]:
    when = f", {_since(failure['time'], now)} ago" if "time" in failure else ""
    text = Text(
        f"Last failure: stage {stage}, attempt {failure.get('attempt', '?')}{when}: {failure.get('reason', '')}"
    )
    details = {"exit code": "exitCode", "step": "step", "pod": "pod", "node": "node"}
    said = [f"{word} {failure[name]}" for word, name in details.items() if failure.get(name) is not None]
    yield text.append(f" ({', '.join(said)})" if said else "")
    if failure.get("message"):
        yield Text(f"  {failure['message']}")
    yield from (Text(f"  | {line}", style="dim") for line in failure.get("logTail", "").splitlines())


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _colored(phase: str) -> Text:
    return Text(phase, style=COLORS.get(phase.partition(" ")[0], "default"))


def _time(stamp: str) -> datetime:
    return datetime.fromisoformat(stamp).astimezone(UTC)


def _since(stamp: str, now: datetime) -> str:
    return duration((now - _time(stamp)).total_seconds())


def duration(seconds: float) -> str:
    """As kubectl writes ages: `45s`, `12m`, `3h20m`, `2d4h`."""
    minutes, hours, days = int(seconds) // 60, int(seconds) // 3600, int(seconds) // 86400
    if minutes < 1:
        return f"{max(0, int(seconds))}s"
    if hours < 1:
        return f"{minutes}m"
    return f"{hours}h{minutes % 60}m" if days < 1 else f"{days}d{hours % 24}h"
