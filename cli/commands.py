"""Groups of commands from a table: only the module of the command that was typed is imported.

So `ziya ask` never waits for what `ziya convert` needs, nor `ziya train status` for what training needs.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class Entry(NamedTuple):
    """Where a command is: a module with a typer `app`, which is that command or has it. `help` is for the list."""

    module: str
    help: str


def group(table: Mapping[str, Entry]) -> type[TyperGroup]:
    """A class for `typer.Typer(cls=…)`."""

    class Commands(TyperGroup):
        """Lists commands from the table; imports a command's module when it is to run."""

        def list_commands(self, ctx: Any) -> list[str]:
            return list(table)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            return TyperCommand(cmd_name, help=table[cmd_name].help) if cmd_name in table else None

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            name, _, rest = super().resolve_command(ctx, args)
            module = importlib.import_module(table[name or ""].module)
            command: Any = typer.main.get_command(module.app)
            return name, getattr(command, "commands", {}).get(name, command), rest

    return Commands
