"""`ziya convert`: weights of other projects to a checkpoint, and a checkpoint to Hugging Face's BLIP-2 layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.text import CommandError, say
from ziya.model.convert import convert as to_checkpoint
from ziya.model.export import export as to_hugging_face

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Folder to read.")],
    target: Annotated[Path, typer.Argument(help="Folder to write; must not exist yet.")],
    llama: Annotated[Path | None, typer.Option(help="The LLaMA, when SOURCE has none or only a part of it.")] = None,
    base: Annotated[Path | None, typer.Option(help="The base LLaMA to which delta weights are added.")] = None,
    to_hf: Annotated[
        bool, typer.Option("--to-hf", help="SOURCE is a checkpoint: write Hugging Face's layout.")
    ] = False,
) -> None:
    """Turn Hugging Face BLIP-2 or Ziya-Visual weights into a checkpoint; with --to-hf, the other way round.

    SOURCE may be a BLIP-2 folder with a LLaMA text model, Ziya-Visual's first release (vision part; give --llama,
    and --base when that LLaMA is published as delta weights), or an InstructBLIP-style one.
    """
    if to_hf and (llama or base):
        raise CommandError("--to-hf needs no --llama and no --base: the checkpoint holds all of it", 2)
    try:
        if to_hf:
            to_hugging_face(source, target, progress=say)
        else:
            to_checkpoint(source, target, llama=llama, base=base, progress=say)
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from error
    say(f"wrote {target}")
