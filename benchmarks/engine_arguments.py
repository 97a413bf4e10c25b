"""The arguments that the engines' benchmarks share."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.alternation import Turns
from benchmarks.peers.child import ROOT

FOLDER = ROOT / "build" / "peers"
SETUP = "python -m benchmarks.engines --setup"
NATIVE_OPTIONS: dict[str, dict[str, Any]] = {"bf16": {}, "int8": {"quantise": "int8"}}


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def parser(description: str | None) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--at", type=Path, default=FOLDER, help="environments and models (default: build/peers)")
    found.add_argument("--precision", choices=list(NATIVE_OPTIONS), default="bf16")
    found.add_argument("--requests", type=lambda text: [int(word) for word in words(text)], default=[1, 8, 32])
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    found.add_argument("--option", type=_option, action="append", default=[], metavar="NAME=JSON", help="of native")
    found.add_argument("--patience", type=float, default=600.0, help="seconds to wait for a quiet machine")
    found.add_argument("--json", type=Path, help="write all rounds there")
    return found


def parse(arguments: argparse.ArgumentParser) -> argparse.Namespace:
    """With `at` absolute and `native`, the options of the native engine."""
    how = arguments.parse_args()
    how.at = how.at.absolute()
    how.native = {**NATIVE_OPTIONS[how.precision], **dict(how.option)}
    return how


def keep(turns: Turns, path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps([vars(turn) for turn in turns.all]), "utf-8")


def _option(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    return name, json.loads(value)
