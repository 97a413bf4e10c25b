"""`ziya key`: API keys, and the file that a gateway knows them by."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.text import CommandError, remark, say
from services.gateway.keys.key_entry import Key, KeyEntry, Limits, Role, new_secret, parse_keys

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def key() -> None:
    """Make API keys, and look at the file that a gateway knows them by."""


@app.command()
def new(
    name: Annotated[str, typer.Option(help="Whose it is; stands in logs and metrics.")],
    role: Annotated[Literal["user", "internal", "admin"], typer.Option(help="What it may do.")] = "user",
    priority: Annotated[Literal["low", "normal", "high"], typer.Option(help="Who goes first under load.")] = "normal",
    weight: Annotated[float, typer.Option(help="Its part of a busy system, beside others'.")] = 1.0,
    images_per_minute: Annotated[int | None, typer.Option(help="[default: the gateway's]")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Prompts and answers. [default: the gateway's]")] = None,
    concurrent: Annotated[int | None, typer.Option(help="Requests at once. [default: the gateway's]")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="One it may use; again for more. [default: all]")] = None,
    file: Annotated[Path | None, typer.Option(help="Keys file to add the line to, instead of printing it.")] = None,
) -> None:
    """Make a key: prints it, this once, and the line by which a gateway knows it.

    The line holds a hash and tells nothing of the key. It goes into the file of ZIYA_GATEWAY_API_KEYS_FILE, or into the
    Secret that the chart's gateway.apiKeys names; a running gateway reads it within seconds.
    """
    secret = new_secret()
    given = {
        "role": Role(role),
        "priority": priority,
        "weight": weight,
        "images_per_minute": images_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrent": concurrent,
        "adapters": tuple(adapter) if adapter else None,
    }
    try:
        entry = KeyEntry.of(secret, name=name, **{field: value for field, value in given.items() if value is not None})
    except ValueError as error:
        field, _, said = str(error).partition(": ")
        raise CommandError(f"--{field.replace('_', '-')}: {said}", 2) from None
    if file is None:
        say(secret)
        say(entry.line())
        remark("The first line is the key: keep it, it is nowhere else. The second is for the keys file.")
        return
    _add(file, entry)
    say(secret)
    remark(f"This is the key: keep it, it is nowhere else. {file} has its hash.")


@app.command(name="list")
def list_(file: Annotated[Path, typer.Argument(metavar="FILE", help="A keys file.")]) -> None:
    """Show the keys of a file, as a gateway would read it; says which line is wrong."""
    for one in _read(file):
        say(_described(one))


def _add(file: Path, entry: KeyEntry) -> None:
    if file.exists() and entry.name in {one.name for one in _read(file)}:
        raise CommandError(f"{file} has a key {entry.name} already: choose another name, or remove its line", 2)
    try:
        before = file.read_text("utf-8") if file.exists() else ""
        gap = "\n" if before and not before.endswith("\n") else ""
        with file.open("a", encoding="utf-8") as end:
            end.write(f"{gap}{entry.line()}\n")
    except OSError as error:
        raise CommandError(f"cannot write {file}: {(error.strerror or str(error)).lower()}", 2) from error


def _read(file: Path) -> list[Key]:
    try:
        return list(parse_keys(file.read_text("utf-8"), Limits()).values())
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {file}: {error}", 2) from error
    except ValueError as error:
        raise CommandError(f"{file}, {error}", 2) from error


def _described(key: Key) -> str:
    limits = {"images/min": key.limits.images, "tokens/min": key.limits.tokens, "at once": key.limits.concurrent}
    words = [f"{number} {unit}" for unit, number in limits.items() if number is not None]
    if key.adapters is not None:
        words.append(f"adapters {', '.join(sorted(key.adapters)) or 'none'}")
    if key.weight != 1:
        words.append(f"weight {key.weight:g}")
    return f"{key.name}: {', '.join([key.role, key.priority.name.lower(), *words])}"


if __name__ == "__main__":
    sys.exit(app())
