"""The run as a person at the terminal sees it: a bar where there is a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from training.progress import Pace, StepReport

LINE_SECONDS = 10.0


class Bar:
    """Prints to stdout, or draws on `console`."""

    def __init__(
        self,
        stage: str,
        first_step: int,
        total_steps: int,
        line_seconds: float = LINE_SECONDS,
        console: Console | None = None,
    ) -> None:
        self.stage, self.line_seconds = stage, line_seconds
        self._printed = time.monotonic()
        self._losses: dict[str, tuple[float, int]] = {}
        self._bar = _rich(console) if console is not None or sys.stdout.isatty() else None
        if self._bar is not None:
            self._task = self._bar.add_task(stage, total=total_steps, completed=first_step, left="")
            self._bar.start()

    def step(self, report: StepReport, pace: Pace) -> None:
        # The total is in every line already.
        parts = {name: loss for name, loss in report.losses.items() if name != "total"}
        for name, loss in {**parts, **report.by_source}.items():
            total, count = self._losses.get(name, (0.0, 0))
            self._losses[name] = (total + loss, count + 1)
        if self._bar is not None:
            losses = (f"{name} {loss:.3f}" for name, loss in report.losses.items() if name != "total")
            self._bar.below = "  ".join([_rates(report, pace), *losses])
            self._bar.update(self._task, completed=report.step, left=_left(pace))
        due = time.monotonic() - self._printed >= self.line_seconds
        if self._bar is None and (due or report.step == report.total_steps):
            said = (self._means(), _rates(report, pace), _left(pace))
            self._say("  ".join([f"{self.stage} {report.step}/{report.total_steps}", *said]))

    def checkpoint(self, step: int, metrics: Mapping[str, float], seconds: float) -> None:
        # All of them are in the log; here one of a kind is enough.
        shown = {name: value for name, value in metrics.items() if not name.endswith(("_r5", "_r10"))}
        shares = "  ".join(f"{name} {value:.1%}" for name, value in shown.items())
        self._say(f"{self.stage} {step}: checkpoint  {self._means()}  {shares}")

    def note(self, text: str) -> None:
        self._say(f"{self.stage}: {text}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _means(self) -> str:
        """Mean losses since they were last shown."""
        means = "  ".join(f"{name} {total / count:.3f}" for name, (total, count) in self._losses.items())
        self._losses = {}
        return means

    def _say(self, line: str) -> None:
        self._printed = time.monotonic()
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)


class _WithLineBelow(RichProgress):
    """A bar, and under it one line of whatever fits there."""

    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.below, no_wrap=True, overflow="ellipsis")


def _rich(console: Console | None) -> _WithLineBelow:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    return _WithLineBelow(*columns, console=console)


def _rates(report: StepReport, pace: Pace) -> str:
    rate = next(iter(report.rates.values()), 0.0)
    words = [f"loss {report.losses['total']:.3f}", f"lr {rate:.1e}", f"{pace.samples_a_second:.0f} samples/s"]
    words += [f"{pace.tokens_a_second:.0f} tokens/s"] if report.useful_tokens else []
    words += [f"MFU {pace.mfu:.0%}"] if pace.mfu is not None else []
    return "  ".join(words)


def _left(pace: Pace) -> str:
    minutes, seconds = divmod(round(pace.eta_seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d} left" if hours else f"{minutes}:{seconds:02d} left"
