"""Which attempt of a stage owns its checkpoint folder, so that a forgotten older one cannot publish into it.

Every attempt has a number larger than any before it, and makes `fence/<number>` before it touches anything. The highest
number there is the owner. An older attempt may still run (a node that lost its network): it computes on, but before
it publishes it looks here again and finds that it was replaced. Making a file that must not exist yet is atomic
on every file system, so two processes cannot both be the same attempt.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from training.commit import sync
from training.errors import Fenced


@dataclass(frozen=True)
class Fence:
    """Of one attempt in the checkpoint folder `folder`."""

    folder: Path
    attempt: int

    def claim(self) -> None:
        """Makes this attempt the owner. Raises Fenced when its number was used before or is not the highest."""
        fence = self.folder / "fence"
        fence.mkdir(parents=True, exist_ok=True)
        who = json.dumps({"attempt": self.attempt, "host": socket.gethostname(), "pid": os.getpid()})
        try:
            with (fence / str(self.attempt)).open("x", encoding="utf-8") as file:
                file.write(who + "\n")
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError as error:
            raise Fenced(
                f"attempt {self.attempt} has run in {self.folder} before: an attempt's number must be new"
            ) from error
        sync(fence)
        # Only now, so that of two attempts which claim at the same time the lower one always finds the higher.
        self.check()

    def check(self) -> None:
        """Raises Fenced when a newer attempt has claimed the folder."""
        owner = max(_claims(self.folder / "fence"), default=0)
        if owner > self.attempt:
            raise Fenced(f"attempt {owner} owns {self.folder} now: attempt {self.attempt} may not publish there")


def _claims(fence: Path) -> list[int]:
    return [int(path.name) for path in fence.iterdir() if path.name.isdigit()]
