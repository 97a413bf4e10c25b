"""`ziya eval leaderboard`: models' answers to the same questions about pictures, compared in pairs by a judge."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cli.eval.standing import as_dict, estimate_lines, judgement_lines, lines
from cli.state import home
from cli.text import CommandError, remark, say
from training.errors import BadConfig, TrainingError
from training.leaderboard.asked import read_asked
from training.leaderboard.board import Board, board
from training.leaderboard.contest import JUDGE, Contest, Judged, answered, costs, judged
from training.leaderboard.contestant import Contestant, check_names, read_answers
from training.leaderboard.judge import Judging
from training.llm.endpoint import Endpoint, Price
from training.llm.ledger import Ledger
from training.stage_folder import write_json
from training.stopping import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def leaderboard(
    questions: Annotated[Path, typer.Argument(metavar="QUESTIONS", help="JSONL of id, question, image(s).")],
    judge: Annotated[str, typer.Option(metavar="URL#MODEL", help="The judge's server, and its name there.")],
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME=URL#MODEL", help="A model to ask; again for each.")
    ] = None,
    answers: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="A model's ready answers, JSONL of id, answer.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder that picture names start at. [default: QUESTIONS']")
    ] = None,
    judge_language: Annotated[
        Literal["en", "zh"] | None, typer.Option(help="Of the judge's prompt. [default: each question's]")
    ] = None,
    blind: Annotated[bool, typer.Option("--blind", help="The judge is shown no pictures.")] = False,
    pairs: Annotated[int | None, typer.Option(help="Pairs to judge a question. [default: all]", min=1)] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 512,
    concurrency: Annotated[int, typer.Option(help="Questions at once to each server.", min=1)] = 16,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="For the judge alone.")] = None,
    keys: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON of the models' API keys, by NAME.")] = None,
    price: Annotated[
        list[str] | None, typer.Option(metavar="NAME|judge=IN,OUT", help="Dollars a million tokens; again for each.")
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Dollars that all of it may cost, ever.", min=0.0)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and ask nothing.")] = False,
    store: Annotated[
        Path | None, typer.Option(help="File that answers and verdicts are kept in. [default: in ~/.local/state/ziya]")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there.")] = None,
    judgements: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every verdict there.")] = None,
) -> None:
    """Rank models by what a judge says of their answers, pair by pair, each pair in both orders.

    Example: ziya eval leaderboard q.jsonl --judge http://j/v1#big --model a=http://a/v1#ziya-visual --answers b=b.jsonl

    Whatever interrupts it: the same command goes on where it was. With one more model, only what is new is asked.
    """
    try:
        prices, secrets = dict(map(_priced, price or [])), _keys(keys)
        contest = Contest(
            asked=read_asked(questions, images),
            contestants=_contestants(model or [], answers or [], secrets, prices, concurrency),
            judge=_endpoint(judge, api_key or secrets.get(JUDGE), prices.get(JUDGE, Price()), concurrency),
            judging=Judging(judge_language, sees=not blind),
            max_tokens=max_tokens,
            pairs=pairs,
        )
        with Ledger(store or home() / "eval" / "leaderboard.sqlite") as ledger:
            if dry_run:
                return say("\n".join(estimate_lines(costs(contest, ledger))))
            standing, found = run(_run(contest, ledger, budget))
            spent = ledger.spent()
    except TrainingError as error:
        raise CommandError(str(error), error.exit_code) from error
    except KeyboardInterrupt as error:
        raise CommandError("stopped; the same command goes on from here", 130) from error
    for line in lines(standing, found):
        say(line)
    remark(f"spent by all that is kept here: {spent.requests} requests, ${spent.dollars:.4f}")
    if json_file:
        write_json(json_file, as_dict(standing, found, contest))
        remark(f"wrote {json_file}")
    if judgements:
        _write(judgements, "".join(judgement_lines(found)))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    remark(f"wrote {path}")


async def _run(contest: Contest, ledger: Ledger, budget: float | None) -> tuple[Board, Judged]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        asked = [one.name for one in contest.contestants if one.endpoint]
        bars = {name: progress.add_task(name, total=len(contest.asked)) for name in asked}
        answers = await answered(contest, ledger, budget, lambda name, more: progress.advance(bars[name], more))
        total = 2 * sum(len(contest.meetings(asked, answers)) for asked in contest.asked)
        bar = progress.add_task(JUDGE, total=total)
        found = await judged(contest, answers, ledger, budget, lambda _, more: progress.advance(bar, more))
    return board([one.name for one in contest.contestants], found.pairs), found


def _contestants(
    models: Sequence[str],
    answers: Sequence[str],
    keys: Mapping[str, str],
    prices: Mapping[str, Price],
    concurrency: int,
) -> list[Contestant]:
    found = []
    for text in models:
        name, where = _named(text, "NAME=URL#MODEL")
        found.append(Contestant(name, _endpoint(where, keys.get(name), prices.get(name, Price()), concurrency)))
    for text in answers:
        name, where = _named(text, "NAME=FILE")
        found.append(read_answers(name, Path(where)))
    check_names(found)
    strangers = sorted({*prices, *keys} - {one.name for one in found} - {JUDGE})
    if strangers:
        raise BadConfig(f"a price or a key is given for {strangers[0]}, which is no model here")
    return found


def _endpoint(text: str, key: str | None, price: Price, concurrency: int) -> Endpoint:
    url, separator, model = text.partition("#")
    if not separator or not model:
        raise BadConfig(f"{text}: write a server as URL#MODEL, such as http://localhost:8080#ziya-visual")
    endpoint = Endpoint(url, model, key, concurrency=concurrency, price=price)
    # Two servers may call different weights by one name.
    return replace(endpoint, revision=endpoint.base_url)


def _named(text: str, form: str) -> tuple[str, str]:
    name, separator, rest = text.partition("=")
    if not separator or not name or not rest or "://" in name:
        raise BadConfig(f"{text}: write it as {form}")
    if name == JUDGE:
        raise BadConfig(f"a model cannot be called {JUDGE}")
    return name, rest


def _priced(text: str) -> tuple[str, Price]:
    name, _, numbers = text.rpartition("=")
    try:
        prompt, completion = map(float, numbers.split(","))
    except ValueError:
        prompt = completion = -1.0
    if not name or min(prompt, completion) < 0.0:
        raise BadConfig(f"{text}: write a price as NAME=IN,OUT, in dollars a million tokens")
    return name, Price(prompt, completion)


def _keys(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadConfig(f"{path}: not a JSON file that can be read") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found.values()):
        raise BadConfig(f"{path}: must hold API keys by a model's name")
    return found
