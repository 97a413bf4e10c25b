"""What can be said to `ziya data build`: its flags, and how they become a build's options.

A flag has the name that its option has in a job's file, but for the few in `_NAMES`. What is not said keeps the
option's default, so no default stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml

from cli.text import CommandError
from training.build.options import GENERATED, BuildOptions, GateOptions, read_options
from training.part import Part
from training.strict_yaml import StrictLoader


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


class Spoken(StrEnum):
    """Of what is generated."""

    EN = "en"
    ZH = "zh"


Source = Annotated[str, typer.Argument(metavar="INPUT", help="A file, a folder or a dataset's URL to read.")]
Output = Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder to write; the same command goes on in it.")]

Url = Annotated[str | None, typer.Option(help="Where the model answers: any OpenAI-compatible URL.")]
Model = Annotated[str | None, typer.Option(help="The model's name there.")]
ApiKeyEnv = Annotated[
    str | None, typer.Option(help="Environment variable that holds the API key; the key itself is never written.")
]

Licence = Annotated[
    str | None, typer.Option(help='Of rows that bring none of their own, as "CC-BY-4.0"; or "unknown".')
]
Translate = Annotated[list[Text] | None, typer.Option(help="Only these; again for more. [default: all]")]
NoTranslate = Annotated[bool, typer.Option("--no-translate", help="Translate nothing.")]
Generate = Annotated[list[Kind] | None, typer.Option(help="Generate these too; again for more.")]
Languages = Annotated[list[Spoken] | None, typer.Option(help="Of what is generated; again for more. [default: both]")]
SourceLanguage = Annotated[Literal["en", "zh"] | None, typer.Option(help="Of texts that do not say it. [default: en]")]

Layout = Annotated[
    Literal["folder", "json", "parquet", "tar", "dataset", "coco", "vqa"] | None,
    typer.Option(help="How INPUT is laid out. [default: what it is seen to be]"),
]
Images = Annotated[str | None, typer.Option(help="Folder that image paths start at. [default: INPUT's]")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only so many rows, the first ones.")]
Items = Annotated[int | None, typer.Option(min=1, help="How many of each kind are generated. [default: 1]")]
Shots = Annotated[int | None, typer.Option(min=0, help="Demonstrations before each. [default: 2]")]
Demonstrations = Annotated[str | None, typer.Option(help="A file of your own. [default: ours]")]
ShowImages = Annotated[bool | None, typer.Option("--show-images", help="The model can see: send it the pictures.")]

Concurrency = Annotated[int | None, typer.Option(min=1, help="Requests at once. [default: 16]")]
PerMinute = Annotated[float | None, typer.Option(help="[default: no limit]")]
Timeout = Annotated[float | None, typer.Option(help="Seconds for one answer. [default: 120]")]
PromptPrice = Annotated[float | None, typer.Option(help="Dollars for a million tokens of questions.")]
AnswerPrice = Annotated[float | None, typer.Option(help="Dollars for a million tokens of answers.")]
Budget = Annotated[float | None, typer.Option(help="Dollars that are never exceeded; needs both prices.")]
DryRunFlag = Annotated[bool, typer.Option("--dry-run", help="Ask nothing: say what it would take, and cost.")]

Shards = Annotated[int, typer.Option(min=1, help="Build in so many pieces, one after another.")]
ShardSamples = Annotated[int | None, typer.Option(min=1, help="Records in one tar. [default: 1000]")]
BadShare = Annotated[
    float | None, typer.Option(min=0, max=1, help="Stop when more of the rows are bad. [default: 0.01]")
]
AgreementFlag = Annotated[
    str | None, typer.Option(help="Checkpoint whose ITC score tells whether text and picture agree.")
]
LeastAgreement = Annotated[float | None, typer.Option(min=-1, max=1, help="Score below it is refused.")]
BackShare = Annotated[
    float | None, typer.Option(min=0, max=1, help="Share translated back and compared. [default: 0.01]")
]
KeepNearDuplicates = Annotated[bool, typer.Option("--keep-near-duplicates", help="Do not look for them.")]
Seed = Annotated[int | None, typer.Option(help="Of what is generated. [default: 0]")]
LedgerFile = Annotated[
    Path | None, typer.Option(help="File of all answers that were paid. [default: OUTPUT.ledger.sqlite]")
]
OptionsFile = Annotated[
    Path | None, typer.Option(help="YAML file of options, as under a data stage's `options`; flags go before it.")
]

_NAMES = {"source": "input", "language": "languages", "source_language": "language"}


def options_of(flags: Mapping[str, Any], file: Path | None, output: Path) -> BuildOptions:
    """Flags as typer has them, over the options in `file`. Raises CommandError, BadConfig."""
    said = {_NAMES.get(name, name): value for name, value in flags.items()}
    given = {name: said[name] for name in BuildOptions.model_fields if said.get(name) not in (None, [], ())}
    gates = {name: said[name] for name in GateOptions.model_fields if said.get(name) is not None}
    if said["no_translate"]:
        given["translate"] = []
    if "generate" in given:
        given["generate"] = [kind for kind in GENERATED if {kind, Kind.ALL} & set(given["generate"])]
    if "ledger" in given:
        given["ledger"] = str(given["ledger"])
    if said["keep_near_duplicates"]:
        gates["near_duplicates"] = False
    return _absolute(_read(given, gates, file), output.absolute())


def _read(given: Mapping[str, Any], gates: Mapping[str, Any], file: Path | None) -> BuildOptions:
    named = _named(_from(file), BuildOptions) if file is not None else {}
    theirs = named.get("gates", {})
    if isinstance(theirs, Mapping):
        named["gates"] = {**_named(theirs, GateOptions), **gates}
    merged = {**named, **given}
    for name in ("url", "model"):
        if not merged.get(name):
            raise CommandError(f"say which {'server' if name == 'url' else 'model'} is to be asked: --{name}", 2)
    return read_options(merged, str(file) if file else "this")


def _named(said: Mapping[str, Any], options: type[Part]) -> dict[str, Any]:
    """By the names that we use, as flags are: else the file's would stand beside them."""
    known = {field.alias or name: name for name, field in options.model_fields.items()}
    return {known.get(name, name): value for name, value in said.items()}


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
