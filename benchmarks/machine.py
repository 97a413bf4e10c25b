"""Where and with what a figure was measured: printed above every table, because a number without it says nothing."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "grpcio", "redis", "nvidia-pytriton", "uvicorn")


def processor() -> str:
    """The processor's name as the kernel gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def describe() -> str:
    """Two lines: date, machine and load; versions."""
    cores = len(os.sched_getaffinity(0))
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    today = datetime.now(UTC).date().isoformat()
    return (
        f"{today}, {cores} cores of {processor()}, load {os.getloadavg()[0]:.2f} at start\n"
        f"Python {platform.python_version()}, {versions}"
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, as it goes into docs/."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
