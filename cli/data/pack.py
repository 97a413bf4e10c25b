"""`ziya data pack`: pictures and texts as a dataset, as they are."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cli.text import CommandError, say
from training.data.inputs import open_inputs
from training.data.report import BadSamples
from training.data.shards import Dataset
from training.data.writer import refuse_foreign, write_dataset
from training.errors import BadData, BadSample

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A JSONL file, a JSON list or a folder to read.")],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="Folder to write; an older dataset there is replaced.")
    ],
    name: Annotated[str | None, typer.Option(help="The dataset's name [default: that of OUTPUT].")] = None,
    shard_samples: Annotated[int, typer.Option(min=1, help="Samples in one tar file.")] = 1000,
    language: Annotated[
        Literal["en", "zh"], typer.Option(help="Of texts that do not say it: .txt captions, LLaVA dialogues.")
    ] = "en",
    images: Annotated[Path | None, typer.Option(help="Folder that image paths start at [default: INPUT's].")] = None,
) -> None:
    """Pack pictures and texts into a dataset that `ziya train` reads.

    INPUT is a JSONL file or JSON list of records ("image" or "images" are paths; LLaVA's "conversations" become
    dialogues), or a folder with a .txt caption or a .json record beside each picture. What cannot be used is skipped
    and named at the end.
    """
    skipped = BadSamples(1.0)
    try:
        refuse_foreign(output)
        dataset = _packed(source, output, name or output.absolute().name, shard_samples, language, images, skipped)
    except (BadData, OSError) as error:
        _tell(skipped)
        raise CommandError(str(error), 2) from error
    _tell(skipped)
    shards = len(dataset.shard_sizes)
    say(f"packed {len(dataset)} samples, {dataset.image_count} images, {shards} shard{'s'[: shards > 1]}: {output}")


def _packed(
    source: Path, output: Path, name: str, shard_samples: int, language: str, images: Path | None, skipped: BadSamples
) -> Dataset:
    inputs = open_inputs(source, language, images)
    columns = (TextColumn("packing"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[bad]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=inputs.count, bad="")

        def bad(sample: BadSample) -> None:
            skipped.add(0, [(sample.key, sample.reason)])
            progress.update(task, bad=f"{skipped.bad} skipped")

        def step() -> None:
            skipped.add(1, [])
            progress.advance(task)

        samples = inputs.samples(bad, step)
        first = next(samples, None)
        if first is None:
            raise BadData(f"nothing in {source} can be packed: {skipped.summary() or 'it is empty'}")
        return write_dataset(output, chain([first], samples), name=name, shard_samples=shard_samples)


def _tell(skipped: BadSamples) -> None:
    """What was skipped, with names."""
    if not skipped.bad:
        return
    say(f"skipped {skipped.bad} of {skipped.seen}: " + ", ".join(f"{n} × {kind}" for kind, n in skipped.kinds.items()))
    for kind, number in skipped.kinds.items():
        named = skipped.examples[kind]
        for key, reason in named.items():
            say(f"  {key}: {reason}")
        if number > len(named):
            say(f"  … and {number - len(named)} more × {kind}")
