"""The benchmark's side of the talk: a process that holds one engine, warm, and sleeps between questions."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import process_costs
from benchmarks.peers.answering import Setting

ROOT = Path(__file__).parents[2]
LOAD_SECONDS, ROUND_SECONDS, STOP_SECONDS = 600.0, 300.0, 30.0
# What a shell or make has set for this project's own programs must not slow down others'.
NOT_PASSED_ON = ("OMP_", "KMP_", "GOMP_", "MKL_", "LD_PRELOAD")


class Child:
    """One process and those that it starts. Its questions are asked one at a time."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: Path) -> None:
        self.name = self.group = name
        self._process, self._log, self._next = process, log, 0

    def round(self, requests: int) -> dict[str, Any]:
        """Asks for as many requests at once, all of them new. Raises RuntimeError with the log's end if it fails."""
        question = {"first": self._next, "requests": requests}
        self._next += requests
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self.read(ROUND_SECONDS)

    def read(self, seconds: float) -> dict[str, Any]:
        stream = self._process.stdout
        assert stream is not None
        if not select.select([stream], [], [], seconds)[0]:
            raise RuntimeError(f"{self.name} did not answer within {seconds:.0f} s\n{self._last_words()}")
        if not (line := stream.readline()):
            raise RuntimeError(f"{self.name} has ended\n{self._last_words()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def cpu_seconds(self) -> float:
        """Processor time that it and its processes have used so far."""
        return process_costs.cpu_seconds(self._process.pid)

    def memory_bytes(self) -> int:
        return process_costs.memory(self._process.pid).proportional

    def stop(self) -> None:
        """Ends it: first by the end of its input, which lets it close its engine."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _last_words(self) -> str:
        return f"{self._log}:\n" + "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-20:])


@contextmanager
def started(
    name: str, module: str, setting: Setting, *, logs: Path, python: Path | None = None, env: Mapping[str, str] = {}
) -> Iterator[Child]:
    """Starts `module` with `python` (this project's own by default); yields when its engine is ready, stops it after.

    Its input is a pipe of ours, so it ends with us, whatever happens to us.
    """
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{name}.log"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(NOT_PASSED_ON)}
    with log.open("w") as errors:
        process = subprocess.Popen(
            [python or sys.executable, "-m", module, setting.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env={**kept, "OMP_NUM_THREADS": str(setting.threads), "HF_HUB_OFFLINE": "1", **env},
            start_new_session=True,
        )
    child = Child(name, process, log)
    try:
        child.read(LOAD_SECONDS)
        yield child
    finally:
        child.stop()
