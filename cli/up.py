"""`ziya up`: the whole stack on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from cli.stack import CHECKPOINT, Options, run, running_stack
from cli.text import say

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def up(
    checkpoint: Annotated[Path, typer.Option(help="Folder of the checkpoint to serve.")] = CHECKPOINT,
    http_port: Annotated[int, typer.Option(help="Port of the HTTP API; 0 for any free one.", min=0, max=65535)] = 8080,
    grpc_port: Annotated[int, typer.Option(help="Port of the gRPC API; 0 for any free one.", min=0, max=65535)] = 9000,
    state_dir: Annotated[
        Path | None, typer.Option(help="Where logs and addresses go. [default: ~/.local/state/ziya/stack]")
    ] = None,
) -> None:
    """Start the whole stack on this machine: Redis, vision, Q-Former, Triton, gateway.

    Prints where everything listens, then one line that begins with `ready`. What dies is started again.
    Ctrl-C lets the requests in flight finish and stops everything. With port 0 the ports inside the stack
    are any free ones, too, so that several stacks can run side by side.
    """
    if not run(_up(Options(checkpoint, http_port, grpc_port, state_dir))):
        say("stopped")


async def _up(options: Options) -> None:
    async with running_stack(options, say) as addresses:
        say(f"ready {addresses.url}")
        await asyncio.Event().wait()
