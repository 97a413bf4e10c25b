"""`metrics.jsonl`: one JSON object a line, for whoever wants to plot or compare a run.

    {"kind": "step", "stage", "step", "attempt", "losses", "by_source", "lr", "grad_norm", …, "time"}
    {"kind": "checkpoint", "step", "attempt", "metrics", "seconds", "time"}
    {"kind": "note", "attempt", "text", "time"}

A resumed run goes on in the same file; steps that were trained twice differ in `attempt`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training.progress import Pace, StepReport

log = logging.getLogger(__name__)


class JsonLog:
    """Appends to `path`. A full disk is warned of once and costs the log, not the run."""

    def __init__(self, path: Path, attempt: int, every_steps: int = 1) -> None:
        self.path, self.attempt, self.every_steps = path, attempt, every_steps
        self._failed = False

    def step(self, report: StepReport, pace: Pace) -> None:
        if report.step % self.every_steps == 0 or report.step == report.total_steps:
            self._write({"kind": "step", **asdict(report), **asdict(pace)})

    def checkpoint(self, step: int, metrics: Mapping[str, float], seconds: float) -> None:
        value = {"kind": "checkpoint", "step": step, "attempt": self.attempt, "metrics": dict(metrics)}
        self._write({**value, "seconds": seconds})

    def note(self, text: str) -> None:
        self._write({"kind": "note", "attempt": self.attempt, "text": text})

    def close(self) -> None:
        """Every line is on its way to the disk already."""

    def _write(self, value: Mapping[str, Any]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({**value, "time": datetime.now(UTC).isoformat()}, ensure_ascii=False) + "\n"
            with self.path.open("ab+") as file:
                # A line that a killed run left unfinished must not take this one with it.
                file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                file.write((b"" if file.read(1) in {b"", b"\n"} else b"\n") + line.encode())
        except OSError as error:
            if not self._failed:
                log.warning("%s cannot be written, the run goes on without it: %s", self.path, error)
            self._failed = True


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a log; a line that a killed run left unfinished is skipped."""
    # A text may hold what else splits lines.
    for line in path.read_text("utf-8", errors="replace").split("\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue
