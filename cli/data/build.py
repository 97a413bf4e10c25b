"""`ziya data build`: English pictures with texts become bilingual instruction data, through a language model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml

from cli.text import CommandError, say
from training.build.bar import Bar
from training.build.dry_run import DryRun, dry_run
from training.build.manifest import MANIFEST
from training.build.options import GENERATED, BuildOptions, read_options
from training.build.rows import open_rows
from training.data.index import INDEX
from training.data.report import BadSamples
from training.errors import BudgetSpent, TrainingError
from training.job import Stage
from training.llm.ledger import Ledger
from training.pieces import Pieces
from training.stage_folder import StageFolder
from training.strict_yaml import StrictLoader

BUILDER = "training.build.stage"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


class Text(StrEnum):
    """What is translated."""

    CAPTION = "caption"
    VQA = "vqa"
    DIALOGUE = "dialogue"


class Kind(StrEnum):
    """What is generated."""

    DESCRIPTION = "description"
    QUESTION = "question"
    REASONING = "reasoning"
    DIALOGUE = "dialogue"
    ALL = "all"


class Language(StrEnum):
    """Of what is generated."""

    EN = "en"
    ZH = "zh"


@app.command()
def build(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A file, a folder or a dataset's URL to read.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder to write; the same command goes on in it.")],
    url: Annotated[str | None, typer.Option(help="Where the model answers: any OpenAI-compatible URL.")] = None,
    model: Annotated[str | None, typer.Option(help="The model's name there.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the API key; the key itself is never written.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help='Of rows that bring none of their own, as "CC-BY-4.0"; or "unknown".')
    ] = None,
    translate: Annotated[
        list[Text] | None,
        typer.Option(help="Only these; again for more. [default: all]"),
    ] = None,
    no_translate: Annotated[bool, typer.Option("--no-translate", help="Translate nothing.")] = False,
    generate: Annotated[list[Kind] | None, typer.Option(help="Generate these too; again for more.")] = None,
    language: Annotated[
        list[Language] | None, typer.Option(help="Of what is generated; again for more. [default: both]")
    ] = None,
    source_language: Annotated[
        Literal["en", "zh"] | None, typer.Option(help="Of texts that do not say it. [default: en]")
    ] = None,
    layout: Annotated[
        Literal["folder", "json", "parquet", "tar", "dataset", "coco", "vqa"] | None,
        typer.Option(help="How INPUT is laid out. [default: what it is seen to be]"),
    ] = None,
    images: Annotated[str | None, typer.Option(help="Folder that image paths start at. [default: INPUT's]")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many rows, the first ones.")] = None,
    items: Annotated[int | None, typer.Option(min=1, help="How many of each kind are generated. [default: 1]")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Demonstrations before each. [default: 2]")] = None,
    demonstrations: Annotated[str | None, typer.Option(help="A file of your own. [default: ours]")] = None,
    show_images: Annotated[
        bool | None, typer.Option("--show-images", help="The model can see: send it the pictures.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests at once. [default: 16]")] = None,
    requests_per_minute: Annotated[float | None, typer.Option(help="[default: no limit]")] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(help="[default: no limit]")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds for one answer. [default: 120]")] = None,
    prompt_price: Annotated[float | None, typer.Option(help="Dollars for a million tokens of questions.")] = None,
    answer_price: Annotated[float | None, typer.Option(help="Dollars for a million tokens of answers.")] = None,
    budget: Annotated[float | None, typer.Option(help="Dollars that are never exceeded; needs both prices.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask nothing: say what it would take, and cost.")] = False,
    shards: Annotated[int, typer.Option(min=1, help="Build in so many pieces, one after another.")] = 1,
    shard_samples: Annotated[int | None, typer.Option(min=1, help="Records in one tar. [default: 1000]")] = None,
    bad_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Stop when more of the rows are bad. [default: 0.01]")
    ] = None,
    agreement: Annotated[
        str | None, typer.Option(help="Checkpoint whose ITC score tells whether text and picture agree.")
    ] = None,
    least_agreement: Annotated[float | None, typer.Option(min=-1, max=1, help="Score below it is refused.")] = None,
    back_translation: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share translated back and compared. [default: 0.01]")
    ] = None,
    keep_near_duplicates: Annotated[bool, typer.Option("--keep-near-duplicates", help="Do not look for them.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of what is generated. [default: 0]")] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="File of all answers that were paid. [default: OUTPUT.ledger.sqlite]")
    ] = None,
    options: Annotated[
        Path | None, typer.Option(help="YAML file of options, as under a data stage's `options`; flags go before it.")
    ] = None,
) -> None:
    """Build bilingual instruction data from pictures with English texts.

    INPUT is a folder of pictures with texts beside them, a JSONL file or JSON list (LLaVA's too), Parquet, tar shards,
    a dataset of ours, COCO captions or VQAv2. A language model translates captions, questions and dialogues into
    Chinese and, with --generate, writes instructions and responses in both languages from what is known of each
    picture. What the gates refuse is left out and counted in OUTPUT/report.html. An answer is paid once: the same
    command goes on after Ctrl-C, a crash or a budget that is spent.
    """
    gates = {
        "agreement": agreement,
        "least_agreement": least_agreement,
        "back_translation": back_translation,
        "near_duplicates": False if keep_near_duplicates else None,
    }
    given = {
        "input": source,
        "url": url,
        "model": model,
        "api_key_env": api_key_env,
        "licence": licence,
        "translate": [] if no_translate else translate,
        "generate": _kinds(generate),
        "languages": language,
        "language": source_language,
        "layout": layout,
        "images": images,
        "limit": limit,
        "items": items,
        "shots": shots,
        "demonstrations": demonstrations,
        "show_images": show_images,
        "concurrency": concurrency,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "timeout": timeout,
        "prompt_price": prompt_price,
        "answer_price": answer_price,
        "budget": budget,
        "shard_samples": shard_samples,
        "bad_share": bad_share,
        "gates": gates,
        "seed": seed,
        "ledger": str(ledger) if ledger else None,
    }
    try:
        how = _absolute(_read(given, options), output.absolute())
        if dry_run:
            _tell_estimate(_dry_run(how))
        else:
            _build(how, output, shards)
    except BudgetSpent as error:
        raise CommandError(f"{error}. The same command with a larger --budget goes on from there", 42) from error
    except TrainingError as error:
        raise CommandError(str(error), error.exit_code) from error
    except KeyboardInterrupt:
        raise CommandError("stopped at once; what was answered is kept, and the same command goes on", 130) from None


def _kinds(named: list[Kind] | None) -> list[str] | None:
    if named is None:
        return None
    return [kind for kind in GENERATED if kind in named or Kind.ALL in named]


def _read(given: Mapping[str, Any], file: Path | None) -> BuildOptions:
    """Flags over the file's options; what neither names has its default."""
    flags = {name: value for name, value in given.items() if value is not None}
    flags["gates"] = {name: value for name, value in given["gates"].items() if value is not None}
    said = _from(file) if file is not None else {}
    known = {field.alias or name: name for name, field in BuildOptions.model_fields.items()}
    named = {known.get(name, name): value for name, value in said.items()}
    gates = named.get("gates")
    merged = {**named, **flags, "gates": {**(gates if isinstance(gates, Mapping) else {}), **flags["gates"]}}
    for name in ("url", "model"):
        if not merged.get(name):
            raise CommandError(f"say which {'server' if name == 'url' else 'model'} is to be asked: --{name}", 2)
    return read_options(merged, str(file) if file else "this")


def _absolute(how: BuildOptions, output: Path) -> BuildOptions:
    """With paths as they are meant from here: a stage would begin them at its job's output folder."""

    def placed(path: str | None) -> str | None:
        return path if path is None or "://" in path else str(Path(path).absolute())

    how = how.model_copy(update={"ledger": how.ledger or str(output.with_name(f"{output.name}.ledger.sqlite"))})
    names = ("input", "images", "demonstrations", "ledger")
    gates = how.gates.model_copy(update={"agreement": placed(how.gates.agreement)})
    return how.model_copy(update={**{name: placed(getattr(how, name)) for name in names}, "gates": gates})


def _from(file: Path) -> Mapping[str, Any]:
    try:
        said = yaml.load(file.read_text("utf-8"), Loader=StrictLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CommandError(f"{file} cannot be read: {error}", 2) from error
    if not isinstance(said, Mapping):
        raise CommandError(f"{file} holds no options: it must be a mapping", 2)
    return said


def _dry_run(how: BuildOptions) -> DryRun:
    rows = open_rows(how)
    with Bar("", line_seconds=60) as bar:
        bar.begin("planning", len(rows))
        return dry_run(how, rows, bar.step)


def _tell_estimate(dry: DryRun) -> None:
    made = dry.estimate
    say(f"{dry.rows} rows, {dry.bad.bad} that cannot be used{': ' + dry.bad.summary() if dry.bad.bad else ''}")
    say(f"{made.requests} requests to make, {made.cached} answered before")
    say(f"about {made.prompt_tokens} tokens asked, at most {made.completion_tokens_at_most} answered (an estimate)")
    say(f"about ${made.dollars_about:.2f}, at most ${made.dollars_at_most:.2f} at the given prices; nothing was asked")


def _build(how: BuildOptions, output: Path, shards: int) -> None:
    """All pieces, by the same code that builds them on a cluster."""
    _refuse_foreign(output)
    layout = open_rows(how).layout
    options = how.model_copy(update={"expect": layout.digest}).model_dump(mode="json", exclude_defaults=True)
    stage = Stage.model_validate(
        {"name": "build", "type": "data", "builder": BUILDER, "options": options, "shards": shards}
    )
    folder = StageFolder(output)
    pieces = Pieces(stage, folder)
    if missing := pieces.missing():
        (output / "done.json").unlink(missing_ok=True)
    for number in missing or [0]:
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
    say(f"{spent.requests} requests paid in all, {tokens}, ${spent.dollars:.4f}")
    say(f"dataset {said['dataset']}")


def _refuse_foreign(output: Path) -> None:
    """A folder of something else must not be filled; that of a build which was stopped may."""
    if not output.exists() or not any(output.iterdir()) or (output / "shards").is_dir():
        return
    there = "a dataset of another making" if (output / INDEX).is_file() else "no dataset"
    raise CommandError(f"{output} exists and is {there}: choose another folder, or remove it", 2)
