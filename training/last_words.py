"""What an attempt says last: one JSON object of at most 4 KiB in the pod's termination message.

From it the operator learns how the attempt ended and what it left, though logs go with their pod and results lie on a
volume that it does not mount. ZIYA_TERMINATION_LOG names the file; only one that is there already is written.

    {"code": 0, "stage": "chat", "step": 200, "metrics": {…}, "artifact": {"path": "chat/model", "digest": "sha256:…"}}
    {"code": 42, "error": "BadData", "reason": "a sentence", "step": 17}

Processes of one pod share the file. Success is told by the first process of all; of failures the first one that is told
stays, for those after it follow from it.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LIMIT_BYTES = 4096


class LastWords:
    """Of one process. `step` is asked when they are spoken: the last step that was done, None before the first."""

    def __init__(self, path: Path, step: Callable[[], int | None] = lambda: None) -> None:
        self.path = path
        self.step = step

    @classmethod
    def from_environment(cls) -> LastWords:
        return cls(Path(os.environ.get("ZIYA_TERMINATION_LOG") or "/dev/termination-log"))

    def forget(self) -> None:
        """For the start of an attempt: what another one said is not its own."""
        self._write("", replace=True)

    def success(self, summary: Mapping[str, Any]) -> None:
        """From the stage's done.json. Says nothing unless this is the first process of all."""
        if os.environ.get("RANK", "0") == "0":
            told = {name: summary[name] for name in ("stage", "step", "metrics", "artifact") if name in summary}
            self._write(_with_fewer_metrics({"code": 0, **told}), replace=True)

    def failure(self, code: int, error: str, reason: str) -> None:
        """`error` is the name of a class, `reason` a sentence."""
        message = {"code": code, "error": error, "reason": reason, "step": self.step()}
        self._write(_with_shorter_reason(message), replace=False)

    def _write(self, text: str, *, replace: bool) -> None:
        """The attempt ends for another reason than a message that cannot be written, so that is only printed."""
        if not self.path.exists():
            return
        try:
            with self.path.open("r+", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if replace or not file.read():
                    file.seek(0)
                    file.truncate()
                    file.write(text)
        except (OSError, UnicodeDecodeError) as error:
            print(f"{self.path} cannot be written: {error}", file=sys.__stderr__, flush=True)


def _json(message: Mapping[str, Any]) -> str:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))


def _excess(message: Mapping[str, Any]) -> int:
    # What UTF-8 cannot hold (a file name of wild bytes) becomes a question mark.
    return len(_json(message).encode("utf-8", "replace")) - LIMIT_BYTES


def _with_fewer_metrics(message: dict[str, Any]) -> str:
    metrics = dict(message.get("metrics", {}))
    while _excess({**message, "metrics": metrics}) > 0 and metrics:
        metrics.popitem()
    return _json({**message, "metrics": metrics})


def _with_shorter_reason(message: dict[str, Any]) -> str:
    reason = message["reason"].encode("utf-8", "replace").decode()
    while (excess := _excess({**message, "reason": reason})) > 0 and reason:
        # No character takes more than six bytes, and the ellipsis takes three.
        reason = reason[: -max(2, (excess + 3) // 6)] + "…" if len(reason) > 2 else ""
    return _json({**message, "reason": reason})
