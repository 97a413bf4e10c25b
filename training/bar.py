"""The run as a person at the terminal sees it: a bar where there is a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

from training.progress import Pace, StepReport

LINE_SECONDS = 10.0


class Bar:
    """Prints to stdout."""

    def __init__(self, stage: str, first_step: int, total_steps: int, line_seconds: float = LINE_SECONDS) -> None:
        self.stage, self.line_seconds = stage, line_seconds
        self._printed = time.monotonic()
        self._losses: dict[str, tuple[float, int]] = {}
        self._bar = _rich() if sys.stdout.isatty() else None
        if self._bar is not None:
            self._task = self._bar.add_task(stage, total=total_steps, completed=first_step, said="")
            self._bar.start()

    def step(self, report: StepReport, pace: Pace) -> None:
        # The total is in every line already.
        parts = {name: loss for name, loss in report.losses.items() if name != "total"}
        for name, loss in {**parts, **report.by_source}.items():
            total, count = self._losses.get(name, (0.0, 0))
            self._losses[name] = (total + loss, count + 1)
        if self._bar is not None:
            self._bar.update(self._task, completed=report.step, said=_rates(report, pace))
        due = time.monotonic() - self._printed >= self.line_seconds
        if self._bar is None and (due or report.step == report.total_steps):
            self._say(f"{self.stage} {report.step}/{report.total_steps}  {self._means()}  {_rates(report, pace)}")

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


def _rich() -> RichProgress:
    return RichProgress(
        TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[said]}")
    )


def _rates(report: StepReport, pace: Pace) -> str:
    rate = next(iter(report.rates.values()), 0.0)
    words = [f"loss {report.losses['total']:.3f}", f"lr {rate:.1e}", f"{pace.samples_a_second:.0f} samples/s"]
    words += [f"{pace.tokens_a_second:.0f} tokens/s"] if report.useful_tokens else []
    words += [f"MFU {pace.mfu:.0%}"] if pace.mfu is not None else []
    minutes, seconds = divmod(round(pace.eta_seconds), 60)
    return "  ".join([*words, f"{minutes}:{seconds:02d} left"])
