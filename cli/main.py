"""`ziya`: the one command a person types.

Each command is a module of this package with a typer `app`. Only the module of the command that was typed is
imported, so that `ziya ask` never waits for what `ziya convert` needs.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from cli.text import CommandError, complain

COMMANDS = {
    "up": "Start the whole stack on this machine; Ctrl-C stops it.",
    "ask": "Ask a running stack about pictures.",
    "train": "Train a model by the stages of a TrainingJob file.",
    "data": "Pack pictures and texts into a dataset for training.",
    "convert": "Turn Hugging Face or Ziya weights into a checkpoint, and back.",
    "demo": "Start a stack, ask about pictures it has not seen, show the answers, stop.",
}


class Commands(TyperGroup):
    """Lists commands from the table above; imports a command's module when it is to run."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name]) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        module = importlib.import_module(f"cli.{name}")
        return name, typer.main.get_command(module.app), rest


app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


@app.callback()
def ziya() -> None:
    """Ziya-Visual: ask about pictures in Chinese and English."""


def main() -> None:
    try:
        app()
    except CommandError as error:
        complain(error)
        sys.exit(error.status)


if __name__ == "__main__":
    main()
