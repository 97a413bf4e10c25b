"""A container as a process: started in a group of its own, asked to stop, killed with all that it has left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from tests.kube.environment import MARK
from ziya.leash import on_leash


class Process:
    """One container's. Its output goes to `log`. It dies with the tests' process, however that ends."""

    def __init__(self, process: asyncio.subprocess.Process, mark: str) -> None:
        self._process, self._mark = process, mark

    @classmethod
    async def start(cls, command: list[str], environment: dict[str, str], folder: str, log: Path) -> Process:
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *on_leash(signal.SIGKILL),
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )
        return cls(process, environment[MARK])

    async def wait(self) -> int:
        """The exit code as the kubelet reports it; 128 and more for signals."""
        code = await self._process.wait()
        kill_marked(self._mark)
        return code if code >= 0 else 128 - code

    def signal(self, number: int) -> None:
        """To the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        kill_marked(self._mark)


def kill_marked(mark: str) -> None:
    """Whatever a container has started lives no longer than it, in whatever session it is."""
    for pid in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def marked(mark: str) -> list[int]:
    """The processes of that pod that are alive."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                found.append(int(entry))
    return found
