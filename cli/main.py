"""`ziya`: the one command a person types.

Each command is a module of this package with a typer `app` (cli/commands.py).
"""

from __future__ import annotations

import sys

import typer

from cli.commands import Entry, group
from cli.text import CommandError, complain

COMMANDS = {
    "up": "Start the whole stack on this machine; Ctrl-C stops it.",
    "ask": "Ask a running stack about pictures.",
    "top": "Show a running stack live: rates, queues, latencies, caches.",
    "key": "Make API keys for a gateway, and look at its keys file.",
    "train": "Train a model by the stages of a TrainingJob file.",
    "eval": "Measure how good a model's answers are, in both languages.",
    "data": "Pack pictures and texts into a dataset for training.",
    "convert": "Turn Hugging Face or Ziya weights into a checkpoint, and back.",
    "plan": "Say how many replicas of each stage a load needs, and what gives way first.",
    "bench": "Measure a running server under load: latencies, throughput, errors.",
    "demo": "Start a stack, ask about pictures it has not seen, show the answers, stop.",
}
app = typer.Typer(
    cls=group({name: Entry(f"cli.{name}", text) for name, text in COMMANDS.items()}),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
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
