"""Keeps processes running: starts them side by side, starts again what dies, stops all in order.

Each program is the leader of its own process group (a Ctrl-C in the terminal reaches only us, and what a
program leaves behind is ended with it) and on a leash (`ziya/leash.py`), so that it cannot outlive us. Its
output goes straight into its log file: nobody has to read a pipe. A program that dies soon after each start is
given up with the last lines of its log; at once when it ends by itself before it was `proven` to work, or with
exit status 2, which means wrong settings: no new start cures that.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cli.text import CommandError
from ziya.leash import on_leash

WRONG_SETTINGS = 2
TAIL_LINES, TAIL_WIDTH = 12, 300


class GaveUp(CommandError):
    """A program that does not stay up; the sentence names it and shows the end of its log."""


@dataclass(frozen=True)
class Program:
    """What to run. `env` is added to our own environment; programs with a lower `stop_rank` are stopped first.

    `before` is called before each start, `after` when the program has ended.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    stop_rank: int = 1
    grace: float = 15.0  # seconds from SIGTERM to SIGKILL
    death_signal: signal.Signals = signal.SIGKILL  # what it gets when we die
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Patience:
    """How often to try again: `quick_deaths` lives in a row, each under `quick_seconds`, and a program is given up."""

    quick_deaths: int = 5
    quick_seconds: float = 20.0
    first_delay: float = 0.2
    longest_delay: float = 5.0

    def delay(self, deaths: int) -> float:
        return float(min(self.first_delay * 2 ** (deaths - 1), self.longest_delay))


class Child:
    """One program, kept alive by `keep_alive` until `stop`. Set `proven` when it has been seen to work."""

    def __init__(self, program: Program, log: Path, say: Callable[[str], None], patience: Patience) -> None:
        self.program = program
        self.log = log
        self.proven = False
        self._say = say
        self._log_start = 0
        self._patience = patience
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    async def keep_alive(self) -> None:
        """Starts the program, again and again; ends only by being cancelled or by raising GaveUp."""
        deaths = 0
        while True:
            started = time.monotonic()
            self.program.before()
            self._process = await self._spawn()
            status = await self._process.wait()
            self._signal(signal.SIGKILL)  # what it left behind in its group
            self.program.after()
            deaths = deaths + 1 if time.monotonic() - started < self._patience.quick_seconds else 1
            hopeless = status == WRONG_SETTINGS or (status >= 0 and not self.proven)
            if hopeless or deaths >= self._patience.quick_deaths:
                raise GaveUp(f"{self.program.name} {_ending(status)} and was given up.\n{self.tail()}")
            self._say(f"{self.program.name} {_ending(status)}; starting it again (log: {self.log})")
            await asyncio.sleep(self._patience.delay(deaths))

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL when the grace is over. Call when `keep_alive` has been cancelled."""
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), self.program.grace)
        self._signal(signal.SIGKILL)
        await self._process.wait()
        self.program.after()

    def kill(self) -> None:
        if self.pid is not None:
            self._signal(signal.SIGKILL)

    def tail(self) -> str:
        """The last lines that the program wrote in its last life."""
        lines = self.log.read_bytes()[self._log_start :].decode(errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join([f"The end of {self.log}:", *(f"  {_readable(line)}" for line in lines)])

    async def _spawn(self) -> asyncio.subprocess.Process:
        leash = on_leash(self.program.death_signal)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            return await asyncio.create_subprocess_exec(
                *leash,
                *self.program.argv,
                env={**os.environ, **self.program.env},
                cwd=self.log.parent,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


@asynccontextmanager
async def supervise(
    programs: Sequence[Program], logs: Path, say: Callable[[str], None], patience: Patience | None = None
) -> AsyncIterator[list[Child]]:
    """Runs the programs while the body runs; a program that is given up cancels the body and raises GaveUp."""
    _empty_logs(logs, programs)
    children = [Child(p, logs / f"{p.name}.log", say, patience or Patience()) for p in programs]
    try:
        async with asyncio.TaskGroup() as group:
            keepers = [group.create_task(child.keep_alive(), name=child.program.name) for child in children]
            try:
                yield children
            finally:
                await _stop(children, keepers)
    except BaseExceptionGroup as failures:
        gave_up, rest = failures.split(GaveUp)
        raise (gave_up or rest or failures).exceptions[0] from None


async def _stop(children: Sequence[Child], keepers: Sequence[asyncio.Task[None]]) -> None:
    for keeper in keepers:
        keeper.cancel()
    await asyncio.wait(keepers)
    try:
        for rank in sorted({child.program.stop_rank for child in children}):
            await asyncio.gather(*(child.stop() for child in children if child.program.stop_rank == rank))
    except asyncio.CancelledError:  # asked a second time: no more patience
        for child in children:
            child.kill()
        raise


def _empty_logs(folder: Path, programs: Sequence[Program]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for program in programs:
        (folder / f"{program.name}.log").write_bytes(b"")


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    return f"was killed by {signal.Signals(-status).name}"


def _readable(line: str) -> str:
    """A log line for a person: of a JSON line the level and the message, and of a long one the beginning."""
    with suppress(ValueError, KeyError, TypeError):
        entry = json.loads(line)
        line = f"{entry['level']}: {entry['msg']}"
    return line if len(line) <= TAIL_WIDTH else line[:TAIL_WIDTH] + " …"
