"""What a run says of itself while it runs: one report a step, handed to whoever shows it.

Rates are worked out here, once, from the reports of the last steps: the bar, the log, TensorBoard and the operator's
endpoint all show the same numbers. A step's time is taken as the median of recent ones, so that one slow step (a
checkpoint, an evaluation, the first compile) does not spoil the estimate of what is left.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

RECENT = 50


@dataclass(frozen=True)
class StepReport:
    """One step over all processes. Times are in seconds; `positions` counts padding too, `useful_tokens` does not."""

    stage: str
    step: int
    total_steps: int
    attempt: int
    losses: Mapping[str, float]
    by_source: Mapping[str, float]
    rates: Mapping[str, float]
    grad_norm: float
    samples: int
    useful_tokens: int
    positions: int
    supervised_tokens: int
    flops: float
    seconds: float
    data_seconds: float
    stall_seconds: float


@dataclass(frozen=True)
class Pace:
    """How fast it goes: rates over the recent steps, `mfu` as a share of the peak (None where that is unknown)."""

    seconds_a_step: float
    samples_a_second: float
    tokens_a_second: float
    mfu: float | None
    eta_seconds: float


class Sink(Protocol):
    """Shows or keeps reports. What goes wrong in one is its own business: it never stops the run."""

    def step(self, report: StepReport, pace: Pace) -> None: ...
    def checkpoint(self, step: int, metrics: Mapping[str, float], seconds: float) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


@dataclass
class Progress:
    """Hands every report to all sinks. `peak_flops` is that of all processes together, in FLOP/s."""

    sinks: Sequence[Sink] = ()
    peak_flops: float | None = None
    _recent: deque[StepReport] = field(default_factory=lambda: deque(maxlen=RECENT), init=False)

    def step(self, report: StepReport) -> None:
        self._recent.append(report)
        pace = self.pace()
        for sink in self.sinks:
            sink.step(report, pace)

    def checkpoint(self, step: int, metrics: Mapping[str, float], seconds: float) -> None:
        """A checkpoint was made, and evaluated in `seconds`."""
        for sink in self.sinks:
            sink.checkpoint(step, metrics, seconds)

    def note(self, text: str) -> None:
        for sink in self.sinks:
            sink.note(text)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()

    def pace(self) -> Pace:
        """Over the recent steps. There must have been one."""
        last, seconds = self._recent[-1], median(report.seconds for report in self._recent)
        amounts = Counter[str]()
        for report in self._recent:
            amounts.update({"samples": report.samples, "tokens": report.useful_tokens})
            amounts["flops"] += report.flops  # type: ignore[assignment]
        each = max(seconds, 1e-9) * len(self._recent)
        return Pace(
            seconds_a_step=seconds,
            samples_a_second=amounts["samples"] / each,
            tokens_a_second=amounts["tokens"] / each,
            mfu=amounts["flops"] / each / self.peak_flops if self.peak_flops and amounts["flops"] else None,
            eta_seconds=(last.total_steps - last.step) * seconds,
        )
