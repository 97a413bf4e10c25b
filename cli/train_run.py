"""`ziya train run`: all stages of a TrainingJob file on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.text import CommandError, say
from training.errors import TrainingError
from training.job import load
from training.local import LocalRun

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="The TrainingJob's YAML file.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for results and checkpoints [default: the job's output path].")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Run only this stage.")] = None,
) -> None:
    """Run the stages on this machine, with a progress bar; the same command goes on after any interruption."""
    try:
        LocalRun(file, output or Path(load(file).spec.output.path or "."), say).run(stage)
    except TrainingError as error:
        raise CommandError(str(error), error.exit_code) from error
