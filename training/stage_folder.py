"""The folder of one stage: where its checkpoints, logs, results and its verdict lie.

<output>/<stage>/
    checkpoints/     of training, to resume from (training/checkpoint.py)
    model/           the serving checkpoint that the stage leaves (docs: "Checkpoint folder")
    adapter/         the LoRA adapter in peft's format, where the stage has one
    metrics.jsonl, tensorboard/, evaluation.json, bad-samples.json
    exit.json        how the last attempt ended
    done.json        written last: the stage is finished, with its metrics
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StageFolder:
    """Names only; nothing is made until it is written."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def bad_samples(self) -> Path:
        return self.path / "bad-samples.json"

    @property
    def is_done(self) -> bool:
        return (self.path / "done.json").is_file()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Marks the stage as finished."""
        write_json(self.path / "done.json", summary)

    def summary(self) -> dict[str, Any]:
        """What `finish` wrote; empty when the stage is not finished."""
        return _read(self.path / "done.json")

    def leave(self, attempt: int, code: int, reason: str) -> None:
        """Says how an attempt ended, for whoever started it: torchrun itself passes on no exit code."""
        write_json(self.path / "exit.json", {"attempt": attempt, "code": code, "reason": reason})

    def verdict(self, attempt: int) -> tuple[int, str] | None:
        """Exit code and reason that `attempt` left; None when it ended without a word (killed, crashed)."""
        left = _read(self.path / "exit.json")
        return (left["code"], left["reason"]) if left.get("attempt") == attempt else None

    def next_attempt(self) -> int:
        """One more than the highest attempt that has claimed this folder."""
        fence = self.checkpoints / "fence"
        claimed = [int(path.name) for path in fence.iterdir() if path.name.isdigit()] if fence.is_dir() else []
        return max(claimed, default=0) + 1


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """The whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")
    draft.replace(path)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return value
