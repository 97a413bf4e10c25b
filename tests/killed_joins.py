"""Joins pieces in processes that kill themselves, or are killed: at a file operation, or after a moment.

    python -m tests.killed_joins OPTIONS SHARDS UNJOINED OUTPUT SEED

UNJOINED is a stage's folder in which the last piece is missing. Every time OUTPUT begins as a copy of it, its building
is killed again and again until it ends by itself; a line of JSON then has the number of kills and the digests.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests import builds
from tests.filled_ledger import stage
from training.pieces import Pieces
from training.stage_folder import StageFolder

_OPERATIONS = {"open", "os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}
_TIMES = 8


def main() -> None:
    options, shards = json.loads(sys.argv[1]), int(sys.argv[2])
    unjoined, output, draw = Path(sys.argv[3]), Path(sys.argv[4]), random.Random(int(sys.argv[5]))
    for time_ in range(_TIMES):
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(unjoined, output)
        kills = 0
        while not _ends(options, shards, output, draw, by_operation=time_ % 2 == 0):
            kills += 1
        left = sorted(path.name for path in output.iterdir() if not path.name.startswith("part-"))
        told = {"kills": kills, "left": left, "digests": builds.digests(output)}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


def _ends(options: dict[str, Any], shards: int, output: Path, draw: random.Random, by_operation: bool) -> bool:
    """False when it was killed."""
    at, seconds = draw.randint(1, 300), draw.uniform(0.03, 0.6)
    child = os.fork()
    if not child:
        if by_operation:
            _die_at(at)
        Pieces(stage(options, shards), StageFolder(output)).build(shards - 1)
        os._exit(0)
    if not by_operation:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0, f"it ended with {status}"
    return status == 0


def _die_at(at: int) -> None:
    """At this process's `at`-th file operation, before it is done."""
    count = 0

    def hook(event: str, _: tuple[Any, ...]) -> None:
        nonlocal count
        if event in _OPERATIONS:
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    main()
