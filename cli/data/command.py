"""`ziya data`: datasets to train from, packed as they are or built through a language model."""

from __future__ import annotations

import sys

import typer

from cli.commands import Entry, group

COMMANDS = {
    "pack": Entry("cli.data.pack", "Pack pictures and texts into a dataset, as they are."),
    "build": Entry("cli.data.build", "Translate and generate bilingual data through a language model."),
}
app = typer.Typer(
    cls=group(COMMANDS),
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


@app.callback()
def data() -> None:
    """Make datasets to train from."""


if __name__ == "__main__":
    sys.exit(app())
