"""A builder of data that says when it has begun and waits to be let go, so that a test can kill it meanwhile."""

from __future__ import annotations

import time
from pathlib import Path

BEGUN, GO_ON = "begun", "go-on"


def build(folder: Path, *, seconds: float) -> list[str]:
    """Waits for a file `go-on` in its folder, no longer than that."""
    (folder / BEGUN).touch()
    end = time.monotonic() + seconds
    while not (folder / GO_ON).exists() and time.monotonic() < end:
        time.sleep(0.05)
    (folder / "made.txt").write_text("data")
    return ["made.txt"]
