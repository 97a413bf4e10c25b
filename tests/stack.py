"""A whole stack as a person starts it: `ziya up` as a process of its own, awaited by its `ready` line."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

START_SECONDS = 90
STOP_SECONDS = 60


def ziya(*words: str, env: dict[str, str] | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs a `ziya` command to its end."""
    argv = [sys.executable, "-m", "cli.main", *words]
    return subprocess.run(
        argv, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=timeout, check=False
    )


@dataclass
class Stack:
    """A running `ziya up`. Processes are found by the name of their log, as the supervisor knows them."""

    process: subprocess.Popen[str]
    state: Path
    lines: queue.Queue[str | None]

    def until(self, word: str, timeout: float = START_SECONDS) -> str:
        """The next printed line that holds `word`. Raises AssertionError when the command ends without it."""
        seen = []
        while (line := self.lines.get(timeout=timeout)) is not None:
            seen.append(line)
            if word in line:
                return line.rstrip("\n")
        raise AssertionError(f"`ziya up` ended without {word!r}:\n{''.join(seen)}")

    @property
    def addresses(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.state / "stack.json").read_text("utf-8"))
        return found

    @property
    def url(self) -> str:
        return f"http://{self.addresses['http']}"

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def find(self, word: str) -> psutil.Process:
        """The process of the stack whose command line holds `word`."""
        for child in self.descendants():
            with suppress(psutil.NoSuchProcess):  # gone since, or dead and not yet reaped
                if any(word in part for part in child.cmdline()):
                    return child
        raise AssertionError(f"no process of the stack has {word!r} in its command line")

    def kill(self, word: str) -> None:
        """SIGKILL; returns when the process is gone, for a dying one may still take a connection."""
        victim = self.find(word)
        victim.kill()
        victim.wait(STOP_SECONDS)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)


@contextmanager
def launched(home: Path, checkpoint: Path, env: dict[str, str] | None = None) -> Iterator[Stack]:
    """`ziya up` on free ports, not yet ready, its state under `home`; whatever happens, nothing of it is left."""
    argv = [sys.executable, "-m", "cli.main", "up", "--http-port", "0", "--grpc-port", "0"]
    environment = {**os.environ, "XDG_STATE_HOME": str(home), **(env or {})}
    process = subprocess.Popen(
        [*argv, "--checkpoint", str(checkpoint)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process, lines))
    reader.start()
    stack = Stack(process, home / "ziya" / "stack", lines)
    try:
        yield stack
    finally:
        if process.poll() is None:
            stack.stop()
        reader.join()


@contextmanager
def running(home: Path, checkpoint: Path) -> Iterator[Stack]:
    """A ready stack."""
    with launched(home, checkpoint) as stack:
        stack.until("ready http")
        yield stack


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            lines.put(line)
    lines.put(None)
