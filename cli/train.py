"""`ziya train`: the stages of a TrainingJob, on this machine or on a cluster."""

from __future__ import annotations

import sys

import typer

from cli.commands import Entry, group

COMMANDS = {
    "run": Entry("cli.train_run", "Run the stages of a file on this machine."),
    "submit": Entry("cli.train_cluster", "Hand a file to the cluster's operator."),
    "list": Entry("cli.train_cluster", "List the jobs on the cluster."),
    "status": Entry("cli.train_cluster", "Show how far a job on the cluster is, and why it is not further."),
    "logs": Entry("cli.train_cluster", "Show what the processes of a stage print."),
    "suspend": Entry("cli.train_cluster", "Let the running stage save a checkpoint, and stop."),
    "resume": Entry("cli.train_cluster", "Let a suspended job go on from its checkpoint."),
}
app = typer.Typer(
    cls=group(COMMANDS),
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


@app.callback()
def train() -> None:
    """Train a model by the stages of a TrainingJob file."""


if __name__ == "__main__":
    sys.exit(app())
