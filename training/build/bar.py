"""How far a build is, as a person sees it: a bar where there is a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.llm.ledger import Spent

LINE_SECONDS = 10.0
_REFRESH_SECONDS = 0.5


class Bar:
    """Writes to stderr. A context manager. `name` stands before everything, such as a piece's number."""

    def __init__(self, name: str, line_seconds: float = LINE_SECONDS) -> None:
        self.name, self._line_seconds = name, line_seconds
        self._phase, self._total, self._done = "", 0, 0
        self._asked = self._cached = self._failed = 0
        self._spent: Callable[[], Spent] | None = None
        self._told = time.monotonic()
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True) if sys.stderr.isatty() else None
        self._task = self._bar.add_task(name) if self._bar else None

    def __enter__(self) -> Bar:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def begin(self, phase: str, total: int) -> None:
        """A new part of the work, of `total` rows."""
        self._phase, self._total, self._done = phase, total, 0
        if self._bar and self._task is not None:
            self._bar.reset(self._task, total=total, description=self._words())

    def step(self, rows: int = 1) -> None:
        """So many rows more."""
        self._done += rows
        self._tell()

    def answered(self, *, cached: bool, failed: bool, spent: Callable[[], Spent]) -> None:
        """One question more. `spent` is asked when something is shown, for it costs a look into a file."""
        self._asked, self._cached, self._failed = self._asked + 1, self._cached + cached, self._failed + failed
        self._spent = spent
        self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told < (_REFRESH_SECONDS if self._bar else self._line_seconds):
            return
        self._told = now
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=self._done, description=self._words())
        else:
            print(f"{self._words()}  {self._done}/{self._total} rows", file=sys.stderr, flush=True)

    def _words(self) -> str:
        words = f"{self.name} {self._phase}".strip()
        if self._asked:
            words += f"  {self._asked - self._cached} asked, {self._cached} known, {self._failed} without answer"
        if self._spent:
            spent = self._spent()
            words += f"  ${spent.dollars:.2f}, {spent.prompt_tokens + spent.completion_tokens} tokens"
        return words
