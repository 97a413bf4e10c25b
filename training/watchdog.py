"""A run that goes wrong says so: hangs, numbers that are not finite, and last words for whoever started it.

A hung collective or a dead file server raises nothing, so a thread waits for the loop's beats. When none comes in
time it writes a sentence and the stacks of all threads, and ends the process with the exit code of a
TrainingError (1: trying again may help). A step that never returns to the interpreter would stop that thread too;
`faulthandler`'s own timer, which needs no interpreter, stands behind it and ends the process the same way.
"""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TextIO

from training.errors import NonFinite, TrainingError

WAKES = 20


class Watchdog:
    """Ends the process when `beat` is not called for `seconds`; with None it does nothing.

    The report goes to stderr and to `<folder>/hang-rank<rank>.txt`; `last_words`, if given, gets its first sentence
    (for a termination message). After `report_seconds` more the process ends without the rest of the report: the disk
    may be what hangs. Only one may be active in a process.
    """

    def __init__(
        self,
        seconds: float | None,
        folder: Path,
        *,
        rank: int = 0,
        last_words: Callable[[str], None] | None = None,
        report_seconds: float = 30.0,
    ) -> None:
        self.seconds = seconds
        self.folder = folder
        self.rank = rank
        self._last_words = last_words
        self._report_seconds = report_seconds
        self._phase = ("start", time.monotonic(), datetime.now(UTC))
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self, what: str) -> None:
        """The run is alive and now begins `what`: "step 12", "evaluating step 100"."""
        self._phase = (what, time.monotonic(), datetime.now(UTC))

    def __enter__(self) -> Watchdog:
        if self.seconds is not None:
            self.beat("start")
            self._ended.clear()
            self._thread = threading.Thread(target=self._watch, args=(self.seconds,), name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch(self, seconds: float) -> None:
        while True:
            left = self._phase[1] + seconds - time.monotonic()
            if left <= 0:
                self._end(seconds)
            # Armed anew whenever this thread wakes, long before that timer: a machine that was suspended for a while
            # finds both overdue, and the timer must not end a run that was alive before.
            faulthandler.dump_traceback_later(left + self._report_seconds, exit=True, file=_stderr())
            if self._ended.wait(min(left, seconds / WAKES)):
                faulthandler.cancel_dump_traceback_later()
                return

    def _end(self, seconds: float) -> None:
        what, _, since = self._phase
        sentence = (
            f"rank {self.rank} hangs: {what!r} began at {since:%Y-%m-%d %H:%M:%S} UTC "
            f"and has not ended after {seconds:g} seconds"
        )
        _report(sentence, _stderr())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / f"hang-rank{self.rank}.txt").open("w", encoding="utf-8") as file:
                _report(sentence, file)
            if self._last_words is not None:
                self._last_words(sentence)
        except OSError as error:
            print(f"the report of the hang cannot be written: {error}", file=_stderr(), flush=True)
        finally:
            os._exit(TrainingError.exit_code)


def check_finite(step: int, losses: Mapping[str, float], grad_norm: float) -> None:
    """Raises NonFinite, naming the step and every loss that is NaN or infinite, or the gradient's norm."""
    bad = [f"loss {name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
    if not math.isfinite(grad_norm):
        bad.append(f"the gradient's norm is {grad_norm}")
    if bad:
        raise NonFinite(f"step {step}: {', '.join(bad)}")


def _report(sentence: str, file: TextIO) -> None:
    print(f"{sentence}; stacks of all threads:", file=file, flush=True)
    faulthandler.dump_traceback(file=file, all_threads=True)


def _stderr() -> TextIO:
    """The process's own: faulthandler needs a file descriptor, which a replaced sys.stderr may not have."""
    return sys.__stderr__ or sys.stderr
