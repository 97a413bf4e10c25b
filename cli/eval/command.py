"""`ziya eval TARGET --task …`: the options of an evaluation. `ziya eval leaderboard` is a command of its own."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from cli.eval.plan import LANGUAGES, Plan, spoken
from cli.eval.report import as_dict, lines, predictions
from cli.eval.run import evaluate
from cli.state import home
from cli.text import CommandError, remark, say
from training.errors import TrainingError
from training.scoring.layouts import LAYOUTS
from training.scoring.tasks import TASKS
from training.stage_folder import write_json
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
    target: Annotated[
        str, typer.Argument(metavar="CHECKPOINT|URL", help="A checkpoint folder, or an OpenAI-compatible server's URL.")
    ],
    data: Annotated[
        list[str], typer.Option(metavar="[en=|zh=]PATH", help="What to ask; again for the same in the other language.")
    ],
    task: Annotated[list[str], typer.Option(metavar="TASK", help=f"Of {', '.join(TASKS)}; may be given again.")],
    layout: Annotated[
        str | None, typer.Option(metavar="LAYOUT", help=f"Of {', '.join(LAYOUTS)}. [default: what PATH looks like]")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder that picture names start at. [default: where PATH lies]")
    ] = None,
    annotations: Annotated[Path | None, typer.Option(help="VQA's answers. [default: beside PATH, by its name]")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Of Karpathy's layout, CSVs and ScienceQA; of token files a list. [default: test]"),
    ] = None,
    language: Annotated[Literal["en", "zh", "both"], typer.Option(help="To ask in.")] = "both",
    field: Annotated[str | None, typer.Option(help="Of our own records, to read. [default: the task's]")] = None,
    templates: Annotated[
        str | None, typer.Option(help="Set of wordings, whose first one is asked. [default: the task's]")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="en=|zh=TEXT", help="Ask so instead; may hold {question}, {options}.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Ask about so many items, evenly spaced.", min=1)] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 64,
    top_k: Annotated[int, typer.Option(help="Retrieval: so many are ranked anew by ITM.", min=1)] = 128,
    model: Annotated[str | None, typer.Option(help="Its name at a URL. [default: the first that is listed]")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent as a bearer token.")] = None,
    concurrency: Annotated[int, typer.Option(help="Questions at once to a URL.", min=1)] = 16,
    device: Annotated[str | None, typer.Option(help="For a checkpoint. [default: a GPU where there is one]")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Of torch, for a checkpoint. [default: its own choice]", min=1)
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Folder that answers are kept in. [default: ~/.local/state/ziya/eval]")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask everything again.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there.")] = None,
    predictions_file: Annotated[
        Path | None, typer.Option("--predictions", metavar="FILE", help="Write every answer and its score there.")
    ] = None,
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
    try:
        found = asyncio.run(evaluate(plan, api_key))
    except TrainingError as error:
        raise CommandError(str(error), error.exit_code) from error
    except CheckpointError as error:
        raise CommandError(str(error), 2) from error
    except KeyboardInterrupt as error:
        raise CommandError("stopped; the same command goes on from here", 130) from error
    for line in lines(found):
        say(line)
    if json_file:
        write_json(json_file, as_dict(found, plan))
        remark(f"wrote {json_file}")
    if predictions_file:
        predictions_file.parent.mkdir(parents=True, exist_ok=True)
        predictions_file.write_text("".join(predictions(found)), "utf-8")
        remark(f"wrote {predictions_file}")
