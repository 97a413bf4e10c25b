"""The command `ziya top`: finds the pages, looks at them again and again, draws each frame."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.live import Live

from cli.seconds import seconds
from cli.state import Addresses, only_stack
from cli.text import CommandError, say
from cli.top.frame import Frame, frame_of
from cli.top.keyboard import keys
from cli.top.screen import picture
from cli.top.window import Source, Window

WINDOW_SECONDS = 10.0
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def top(
    addresses: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ADDRESS]...", help="Metrics pages, as host:port or URL. [default: a local stack's]"),
    ] = None,
    url: Annotated[str | None, typer.Option(help="Address of a gateway; its own numbers are shown.")] = None,
    interval: Annotated[str, typer.Option(help="Time between two looks, as 2s or 500ms.")] = "2s",
    once: Annotated[bool, typer.Option("--once", help="Print one frame, over one interval, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one frame as JSON and stop.")] = False,
) -> None:
    """Show a running stack: rates, queues, latencies (p50 / p95), batches, caches, and which stages are up.

    The numbers are those of the last ten seconds. q or Ctrl-C ends it.
    """
    pause = seconds(interval, "--interval")
    sources, title = _sources(addresses or [], url)
    window = Window(sources, WINDOW_SECONDS)
    console = Console()
    if not (once or as_json or console.is_terminal):
        raise CommandError("the live view needs a terminal: take --once or --json here", 2)
    # Somebody sits before it: Ctrl-C ends it, even where whoever started it has it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        if once or as_json:
            frame = asyncio.run(_one(window, pause))
            if as_json:
                say(json.dumps(asdict(frame)))
            else:
                console.print(picture(frame, width=console.width, title=f"{title}, over {interval}"))
        else:
            asyncio.run(_live(window, pause, console, title))


async def _one(window: Window, pause: float) -> Frame:
    async with httpx.AsyncClient(trust_env=False) as client:
        await _first(window, client)
        await asyncio.sleep(pause)
        await window.look(client)
    return frame_of(window)


async def _live(window: Window, pause: float, console: Console, title: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        await _first(window, client)
        with keys() as typed, Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                head = f"{title}, every {pause:g} s over {WINDOW_SECONDS:g} s, q ends it   {time.strftime('%H:%M:%S')}"
                live.update(picture(frame_of(window), width=console.width, title=head), refresh=True)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        if "q" in (await typed.get()).lower():
                            return
                await window.look(client)


async def _first(window: Window, client: httpx.AsyncClient) -> None:
    """The first look. Raises CommandError when nobody answers it."""
    await window.look(client)
    if not frame_of(window).anybody:
        raise CommandError("no metrics page answers; is the stack running, and are these its metrics addresses?")


def _sources(addresses: list[str], url: str | None) -> tuple[list[Source], str]:
    if addresses:
        return [Source(_page(address)) for address in addresses], f"{len(addresses)} metrics pages"
    if url:
        return [Source(_page(url), "gateway")], url
    stack = only_stack()
    return list(_of_stack(stack)), stack.url


def _of_stack(stack: Addresses) -> list[Source]:
    pages = {
        "gateway": stack.gateway_metrics,
        "vision": stack.vision_metrics,
        "qformer": stack.qformer_metrics,
        "llama": stack.triton_metrics,
    }
    return [Source(_page(address), stage) for stage, address in pages.items() if address]


def _page(address: str) -> str:
    whole = address if "://" in address else f"http://{address}"
    return whole if whole.endswith("/metrics") else f"{whole.rstrip('/')}/metrics"
