"""The tests' language model as a process of its own, that can be killed and comes back on the same port."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Self

from tests.llm_server import Troubles, arguments


class LlmProcess:
    """Remembers what it was paid in `journal`, over deaths. Use with `with`."""

    def __init__(self, journal: Path, troubles: Troubles | None = None, *more: str) -> None:
        self.port = 0
        self._journal, self._troubles, self._more = journal, troubles or Troubles(), more

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def is_dead(self) -> bool:
        return self._process.poll() is not None

    def start(self) -> Self:
        command = [sys.executable, "-m", "tests.llm_server", "--port", str(self.port), "--journal", str(self._journal)]
        command += [*arguments(self._troubles), *self._more]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.port = int(self._process.stdout.readline())
        return self

    def troubled(self, troubles: Troubles) -> None:
        """From its next start on."""
        self._troubles = troubles

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()

    def counts(self) -> dict[str, Any]:
        """Of this life what was asked; of all lives what was paid."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.port}/counts") as found:
            return json.load(found)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
