"""`ziya bench`: a load on a running server, and how fast, how steadily and how reliably it answers."""

from __future__ import annotations

import importlib
import json
import math
import os
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.load.arrivals import Pattern
from cli.load.experiment import Experiment, Settings
from cli.load.lengths import Lengths
from cli.load.measures import summarise
from cli.load.report import as_dict, lines
from cli.load.request import Options
from cli.load.run import Bounds
from cli.load.slo import Objective
from cli.load.target import Target
from cli.load.workload import Mix
from cli.seconds import seconds
from cli.stack import run
from cli.state import only_stack
from cli.text import CommandError, remark, say

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

STOPPED = 130
PLOTS = (".svg", ".png", ".pdf")


@app.command()
def bench(
    url: Annotated[
        str | None, typer.Option(help="http(s)://host:port or grpc://host:port. [default: the stack on this machine]")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Its name. [default: the first that the server lists]")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent as a bearer token.")] = None,
    requests: Annotated[int | None, typer.Option(help="How many. [default: 100, without --duration]", min=1)] = None,
    duration: Annotated[str | None, typer.Option(metavar="TIME", help="No request starts later: 60s, 5m.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Requests at once; with --rate, at most. [default: 1; with --rate, any]", min=1)
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Open loop: requests a second, whatever becomes of them.")] = None,
    arrivals: Annotated[Pattern, typer.Option(help="How they come with --rate.")] = "poisson",
    burstiness: Annotated[float, typer.Option(help="Shape of gamma arrivals: below 1 they come in bursts.")] = 0.25,
    prompt_tokens: Annotated[
        str, typer.Option(metavar="LENGTH", help="Of a question: 64, uniform:16:128, normal:64:16, exponential:64.")
    ] = "64",
    answer_tokens: Annotated[str, typer.Option(metavar="LENGTH", help="At most, of an answer; as above.")] = "64",
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Answers have exactly that length, where the server can do so.")
    ] = False,
    images: Annotated[
        str, typer.Option(metavar="none|generated|FOLDER", help="Pictures to show, one a question.")
    ] = "none",
    image_size: Annotated[int, typer.Option(help="Pixels of a generated picture's side.", min=16, max=8192)] = 448,
    image_share: Annotated[float, typer.Option(help="Share of first questions with a picture.", min=0, max=1)] = 1.0,
    reuse: Annotated[float, typer.Option(help="Share of pictures that were shown before.", min=0, max=1)] = 0.0,
    follow_ups: Annotated[float, typer.Option(help="Share of follow-up questions.", min=0, max=1)] = 0.0,
    max_turns: Annotated[int, typer.Option(help="Questions in one conversation, at most.", min=1)] = 4,
    temperature: Annotated[float, typer.Option(help="0 always gives the likeliest answer.", min=0)] = 0.0,
    extra: Annotated[str, typer.Option(metavar="JSON", help="Fields to add to each HTTP request.")] = "{}",
    timeout: Annotated[str, typer.Option(metavar="TIME", help="A request that takes longer has failed.")] = "120s",
    slo: Annotated[
        str | None, typer.Option(metavar="LIMITS", help="Count who keeps them: ttft=500ms,itl=50ms,tpot=…,e2e=….")
    ] = None,
    warm_up: Annotated[int, typer.Option(help="Requests before, that do not count.", min=0)] = 2,
    seed: Annotated[int, typer.Option(help="Of lengths, pictures, arrivals and turns.", min=0)] = 0,
    nonce: Annotated[
        int | None, typer.Option(help="With an earlier run's, its very words and pixels. [default: new ones]", min=0)
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write every figure there.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: .svg, .png or .pdf.")] = None,
) -> None:
    """Measure a running server under load: time to first token, between tokens and to the end, throughput, errors.

    Closed loop: --concurrency callers ask one question after another. Open loop: with --rate questions are asked at
    that pace, and latencies count from when each was due. Any server that speaks OpenAI's chat API can be measured, and
    this project's gRPC. Ctrl-C ends the load and reports what was measured.
    """
    settings = Settings(
        target=Target.parse(url or only_stack().url),
        model=model,
        bounds=Bounds(
            requests or (None if duration else 100),
            seconds(duration, "--duration") if duration else None,
            seconds(timeout, "--timeout"),
        ),
        concurrency=concurrency,
        rate=_above_0(rate, "--rate"),
        arrivals=arrivals,
        burstiness=_above_0(burstiness, "--burstiness") or 1.0,
        mix=Mix(
            Lengths.parse(prompt_tokens, "--prompt-tokens"),
            Lengths.parse(answer_tokens, "--answer-tokens"),
            0.0 if images == "none" else image_share,
            follow_ups,
            max_turns,
        ),
        options=Options(temperature, ignore_eos, _fields(extra)),
        images=images,
        image_size=image_size,
        reuse=reuse,
        warm_up=warm_up,
        seed=seed,
        nonce=time.time_ns() % (1 << 32) if nonce is None else nonce,
    )
    settings.album(settings.nonce)  # a folder that cannot be used is told now
    objective = Objective.parse(slo) if slo else None
    draw = _plotter(plot)
    _writable(json_file)
    started = datetime.now(UTC)
    experiment = Experiment(settings, api_key)
    finished = run(experiment.run())
    _report(experiment, objective, started, json_file, plot, draw, finished=finished)


def _report(
    experiment: Experiment,
    objective: Objective | None,
    started: datetime,
    json_file: Path | None,
    plot: Path | None,
    draw: Any,
    *,
    finished: bool,
) -> None:
    """Prints, writes and draws what is known. Ends the command with a status of its own when that is not all."""
    if not experiment.answers:
        raise CommandError("stopped before anything was measured", STOPPED)
    summary = summarise(experiment.answers, experiment.seconds, objective)
    settings = experiment.settings
    name = experiment.model or experiment.served_by
    say(f"{settings.target}, {name}: {settings.describe()}")
    if experiment.tokens_per_word is None:
        say("             (the server counts no tokens: a word of a question was taken for one)")
    for line in lines(summary, objective=str(objective or ""), open_loop=settings.rate is not None):
        say(line)
    if json_file:
        about = _about(experiment, objective, started, finished=finished)
        json_file.write_text(json.dumps(as_dict(summary, experiment.answers, about), indent=1) + "\n", "utf-8")
    if plot:
        title = f"{name} at {settings.target}: {settings.describe()}"
        draw(experiment.answers, experiment.seconds, objective, title, plot)
    for path in filter(None, (json_file, plot)):
        remark(f"wrote {path}")
    if not finished:
        raise CommandError("stopped; the figures are of what had happened until then", STOPPED)
    if not summary.succeeded:
        raise CommandError("no request was answered")


def _about(experiment: Experiment, objective: Objective | None, started: datetime, *, finished: bool) -> dict[str, Any]:
    settings = asdict(experiment.settings) | {"target": str(experiment.settings.target)}
    return {
        "started": started.isoformat(timespec="seconds"),
        "finished": finished,
        "model": experiment.model,
        "served_by": experiment.served_by,
        "settings": settings | {"slo": objective.limits if objective else None},
        "tokens_per_word": experiment.tokens_per_word,
    }


def _plotter(path: Path | None) -> Any:
    """The function that draws. Raises CommandError now rather than after the load."""
    if path is None:
        return None
    if path.suffix.lower() not in PLOTS:
        raise CommandError(f"--plot writes {', '.join(PLOTS)}, not {path.name}", 2)
    _writable(path)
    try:
        return importlib.import_module("cli.load.plot").plot
    except ImportError as error:
        raise CommandError("--plot needs matplotlib: pip install matplotlib") from error


def _writable(path: Path | None) -> None:
    if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
        raise CommandError(f"cannot write {path}", 2)


def _above_0(number: float | None, name: str) -> float | None:
    if number is not None and not (0 < number < math.inf):
        raise CommandError(f"{name} must be above 0, not {number:g}", 2)
    return number


def _fields(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise CommandError(f"--extra is a JSON object, not {text!r}", 2)
    return fields
