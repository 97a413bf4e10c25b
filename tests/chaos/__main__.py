"""`make chaos`: breaks a running stack in every way that there is a name for, and prints what its clients saw.

python -m tests.chaos                                  every fault, 2,000 requests each
python -m tests.chaos --requests 300 vision-killed     one, and shorter
python -m tests.chaos --list
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.machine import describe
from cli.stack import CHECKPOINT
from tests.chaos.act import Load, act
from tests.chaos.faults import FAULTS, SINGLE
from tests.chaos.scene import Scene, scene
from tests.chaos.table import HEAD, markdown, row
from tests.chaos.verdict import Verdict
from ziya import event_loop


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Breaks a running stack under load.")
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="which, by name; all of them without one")
    parser.add_argument("--requests", type=int, default=2000, help="for each fault (default 2000)")
    parser.add_argument("--rate", type=float, default=15.0, help="requests a second (default 15)")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    given = parser.parse_args()
    if given.list:
        say("\n".join(FAULTS))
        return
    if unknown := [name for name in given.faults if name not in FAULTS]:
        parser.error(f"there is no fault {unknown[0]!r}; --list names them")
    names = given.faults or [*(fault.name for fault in SINGLE), *FAULTS]
    say(f"{describe()}\n{given.rate:g} requests/s, half of the pictures fresh, over HTTP and gRPC in turn\n")
    with scene(given.checkpoint) as there:
        verdicts = event_loop.run(_all(there, list(dict.fromkeys(names)), Load.of(given.requests, given.rate)))
    say("\n" + markdown(HEAD, map(row, verdicts)))
    for verdict in verdicts:
        for example in verdict.examples:
            say(f"{verdict.fault}: {example}")
    sys.exit(1 if any(verdict.failed for verdict in verdicts) else 0)


async def _all(there: Scene, names: list[str], load: Load) -> list[Verdict]:
    verdicts = []
    for seed, name in enumerate(names):
        verdict = await act(there, FAULTS[name], load, seed)
        say("  ".join(row(verdict)))
        verdicts.append(verdict)
    return verdicts


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
