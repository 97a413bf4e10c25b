"""What a run says of itself while it runs: one report a step, handed to whoever shows it.

Rates are worked out here, once, from the reports of the last steps: the bar, the log, TensorBoard and the operator's
endpoint all show the same numbers. A step's time is taken as the median of recent ones, so that one slow step (a
checkpoint, an evaluation, the first compile) does not spoil the estimate of what is left.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

RECENT = 50
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepReport:
    """One step over all processes. Times are in seconds; `positions` counts padding too, `useful_tokens` does not,
    and counts for every sample what it shares with others."""

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
    """Shows or keeps reports. An OSError of one never stops the run or the others."""

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
    _failed: set[int] = field(default_factory=set, init=False)

    def step(self, report: StepReport) -> None:
        self._recent.append(report)
        pace = self.pace()
        self._each(lambda sink: sink.step(report, pace))

    def checkpoint(self, step: int, metrics: Mapping[str, float], seconds: float) -> None:
        """A checkpoint was made, and evaluated in `seconds`."""
        self._each(lambda sink: sink.checkpoint(step, metrics, seconds))

    def note(self, text: str) -> None:
        self._each(lambda sink: sink.note(text))

    def close(self) -> None:
        self._each(lambda sink: sink.close())

    def _each(self, tell: Callable[[Sink], None]) -> None:
        """A full disk or a closed terminal is warned of once a sink, and costs what the sink shows, not the run."""
        for sink in self.sinks:
            try:
                tell(sink)
            except OSError as error:
                if id(sink) not in self._failed:
                    log.warning("%s cannot go on, the run does without it: %s", type(sink).__name__, error)
                self._failed.add(id(sink))

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
