"""`ziya data build`: English pictures with texts become bilingual instruction data, through a language model."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from cli.data import build_options as flags
from cli.text import CommandError, say
from training.build.bar import Bar
from training.build.dry_run import DryRun, dry_run
from training.build.manifest import MANIFEST
from training.build.options import BuildOptions
from training.build.rows import open_rows
from training.data.index import INDEX
from training.data.report import BadSamples
from training.errors import BudgetSpent, TrainingError
from training.job import Stage
from training.llm.endpoint import Price
from training.llm.ledger import Ledger
from training.pieces import Pieces
from training.stage_folder import StageFolder

BUILDER = "training.build.stage"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def build(
    context: typer.Context,
    source: flags.Source,
    output: flags.Output,
    url: flags.Url = None,
    model: flags.Model = None,
    api_key_env: flags.ApiKeyEnv = None,
    licence: flags.Licence = None,
    translate: flags.Translate = None,
    no_translate: flags.NoTranslate = False,
    generate: flags.Generate = None,
    language: flags.Languages = None,
    source_language: flags.SourceLanguage = None,
    layout: flags.Layout = None,
    images: flags.Images = None,
    limit: flags.Limit = None,
    items: flags.Items = None,
    shots: flags.Shots = None,
    demonstrations: flags.Demonstrations = None,
    show_images: flags.ShowImages = None,
    concurrency: flags.Concurrency = None,
    requests_per_minute: flags.PerMinute = None,
    tokens_per_minute: flags.PerMinute = None,
    timeout: flags.Timeout = None,
    prompt_price: flags.PromptPrice = None,
    answer_price: flags.AnswerPrice = None,
    budget: flags.Budget = None,
    dry_run: flags.DryRunFlag = False,
    shards: flags.Shards = 1,
    shard_samples: flags.ShardSamples = None,
    bad_share: flags.BadShare = None,
    agreement: flags.AgreementFlag = None,
    least_agreement: flags.LeastAgreement = None,
    back_translation: flags.BackShare = None,
    keep_near_duplicates: flags.KeepNearDuplicates = False,
    seed: flags.Seed = None,
    ledger: flags.LedgerFile = None,
    options: flags.OptionsFile = None,
) -> None:
    """Build bilingual instruction data from pictures with English texts.

    INPUT is a folder of pictures with texts beside them, a JSONL file or JSON list (LLaVA's too), Parquet, tar shards,
    a dataset of ours, COCO captions or VQAv2. A language model translates captions, questions and dialogues into
    Chinese and, with --generate, writes instructions and responses in both languages from what is known of each
    picture. What the gates refuse is left out and counted in OUTPUT/report.html. An answer is paid once: the same
    command goes on after Ctrl-C, a crash or a budget that is spent.
    """
    # The arguments above are what typer makes the flags of; read as one they are options by name.
    try:
        how = flags.options_of(context.params, options, output)
        if dry_run:
            _tell_estimate(_dry_run(how), priced=how.endpoint.price != Price())
        else:
            _build(how, output, shards)
    except BudgetSpent as error:
        raise CommandError(f"{error}. The same command with a larger --budget goes on from there", 42) from error
    except TrainingError as error:
        raise CommandError(str(error), error.exit_code) from error
    except KeyboardInterrupt:
        raise CommandError("stopped at once; what was answered is kept, and the same command goes on", 130) from None


def _dry_run(how: BuildOptions) -> DryRun:
    rows = open_rows(how)
    with Bar("", line_seconds=60) as bar:
        bar.begin("planning", len(rows))
        return dry_run(how, rows, bar.step)


def _tell_estimate(dry: DryRun, *, priced: bool) -> None:
    made, back = dry.estimate, dry.back
    say(f"{dry.rows} rows, {dry.bad.bad} that cannot be used{': ' + dry.bad.summary() if dry.bad.bad else ''}")
    say(f"{made.requests} requests to make, {made.cached} answered before")
    if back.requests:
        say(f"and about {back.requests} to translate a sample back: which texts, and how long, shows only then")
    answered = made.completion_tokens_at_most + back.completion_tokens_at_most
    say(f"about {made.prompt_tokens + back.prompt_tokens} tokens asked, at most {answered} answered (an estimate)")
    about, most = made.dollars_about + back.dollars_about, made.dollars_at_most + back.dollars_at_most
    if priced:
        say(f"about ${about:.2f}, at most ${most:.2f} at the given prices; nothing was asked")
    else:
        say("in dollars: with --prompt-price and --answer-price; nothing was asked")


def _build(how: BuildOptions, output: Path, shards: int) -> None:
    """All pieces, by the same code that builds them on a cluster."""
    _refuse_foreign(output)
    layout = open_rows(how).layout
    options = how.model_copy(update={"expect": layout.digest}).model_dump(mode="json", exclude_defaults=True)
    stage = Stage.model_validate(
        {"name": "build", "type": "data", "builder": BUILDER, "options": options, "shards": shards}
    )
    pieces = Pieces(stage, StageFolder(output))
    # When all pieces are there, the first one is asked for so that they are joined.
    for number in pieces.missing() or [0]:
        pieces.build(number)
    _tell(output, Path(how.ledger or ""))


def _tell(output: Path, ledger: Path) -> None:
    said = json.loads((output / MANIFEST).read_text("utf-8"))
    made, bad = said["made"], BadSamples(1.0)
    bad.restore(said["bad"])
    say(f"{said['records']} records of {said['rows']} rows: {output}")
    say(f"{made['accepted']} of {made['rows']} texts passed the gates; the others, and why: {output}/report.html")
    if bad.bad:
        say(f"{bad.bad} rows or parts of them could not be used: {bad.summary()}")
    with Ledger(ledger) as file:
        spent = file.spent()
    tokens = f"{spent.prompt_tokens} tokens asked and {spent.completion_tokens} answered"
    dollars = f", ${spent.dollars:.4f}" if spent.dollars else ""
    say(f"{spent.requests} requests paid in all, {tokens}{dollars}")
    say(f"dataset {said['dataset']}")


def _refuse_foreign(output: Path) -> None:
    """A folder of something else must not be filled; that of a build which was stopped may."""
    if not output.exists() or not any(output.iterdir()) or (output / "shards").is_dir():
        return
    there = "a dataset of another making" if (output / INDEX).is_file() else "no dataset"
    raise CommandError(f"{output} exists and is {there}: choose another folder, or remove it", 2)
