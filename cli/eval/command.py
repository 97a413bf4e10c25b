"""`ziya eval TARGET --task …`: the options of an evaluation. `ziya eval leaderboard` is a command of its own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from cli.eval import options as flags
from cli.eval.plan import LANGUAGES, Plan, spoken
from cli.eval.report import as_dict, lines, predictions
from cli.eval.run import Found, evaluate
from cli.state import home
from cli.text import CommandError, remark, say
from training.errors import TrainingError
from training.stage_folder import write_json
from training.stopping import run
from ziya.checkpoint import CheckpointError

LEADERBOARD = "leaderboard"


class _Eval(TyperCommand):
    """Takes a target, or the word `leaderboard` and that command's own arguments."""

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        if args[:1] != [LEADERBOARD]:
            return super().make_context(info_name, args, parent, **extra)
        # Not before it is typed: an evaluation needs nothing of it.
        command: Any = typer.main.get_command(importlib.import_module(f"cli.eval.{LEADERBOARD}").app)
        return command.make_context(f"{info_name} {LEADERBOARD}", args[1:], parent, **extra)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(cls=_Eval)
def evaluation(
    target: flags.Target,
    data: flags.Data,
    task: flags.Tasks,
    layout: flags.Layout = None,
    images: flags.Images = None,
    annotations: flags.Annotations = None,
    split: flags.Split = None,
    language: flags.Language = "both",
    field: flags.Field = None,
    templates: flags.Templates = None,
    prompt: flags.Prompts = None,
    limit: flags.Limit = None,
    max_tokens: flags.MaxTokens = 64,
    top_k: flags.TopK = 128,
    model: flags.Model = None,
    api_key: flags.ApiKey = None,
    concurrency: flags.Concurrency = 16,
    device: flags.Device = None,
    threads: flags.Threads = None,
    store: flags.StoreFolder = None,
    fresh: flags.Fresh = False,
    json_file: flags.JsonFile = None,
    predictions_file: flags.PredictionsFile = None,
) -> None:
    """Measure how good a model's answers are, in English and in Chinese, and whether the languages differ.

    Example: ziya eval checkpoints/ziya-tiny --task caption --data captions.jsonl

    Whatever interrupts it: the same command goes on where it was. `ziya eval leaderboard` compares models by a judge.
    """
    plan = Plan(
        target=target,
        tasks=tuple(task),
        data=tuple(data),
        languages=LANGUAGES if language == "both" else (language,),
        layout=layout,
        images=images,
        annotations=annotations,
        split=split,
        field=field,
        templates=templates,
        prompts=dict(map(spoken, prompt or [])),
        limit=limit,
        max_tokens=max_tokens,
        top_k=top_k,
        model=model,
        concurrency=concurrency,
        device=device,
        threads=threads,
        store=store or home() / "eval",
        fresh=fresh,
    )
    _write(_found(plan, api_key), plan, json_file, predictions_file)


def _found(plan: Plan, api_key: str | None) -> Found:
    try:
        return run(evaluate(plan, api_key))
    except TrainingError as error:
        raise CommandError(str(error), error.exit_code) from error
    except CheckpointError as error:
        raise CommandError(str(error), 2) from error
    except KeyboardInterrupt as error:
        raise CommandError("stopped; the same command goes on from here", 130) from error


def _write(found: Found, plan: Plan, json_file: Path | None, predictions_file: Path | None) -> None:
    for line in lines(found):
        say(line)
    if json_file:
        write_json(json_file, as_dict(found, plan))
        remark(f"wrote {json_file}")
    if predictions_file:
        predictions_file.parent.mkdir(parents=True, exist_ok=True)
        predictions_file.write_text("".join(predictions(found)), "utf-8")
        remark(f"wrote {predictions_file}")
