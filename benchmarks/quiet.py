"""Whether a machine was left alone while something was measured: without that, its figures are worthless.

What the processors did in all is in /proc/stat; what is not ours was done by others (or taken by the host: steal).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import psutil

CALM = 0.6  # load average of a machine with nothing to do but us, asleep
POLL_SECONDS = 5.0


def wait(patience: float, say: Callable[[str], None]) -> None:
    """Returns when the load average has fallen, or after `patience` seconds, saying that it has not."""
    until = time.monotonic() + patience
    while os.getloadavg()[0] > CALM:
        if time.monotonic() > until:
            say(f"the machine is not quiet: load {os.getloadavg()[0]:.2f}")
            return
        time.sleep(POLL_SECONDS)


class Measured(Protocol):
    """Something of ours that works while it is its turn and sleeps while it is not; `group` names its processes."""

    @property
    def group(self) -> str: ...

    def cpu_seconds(self) -> float: ...


@dataclass(frozen=True)
class Moment:
    """Processor seconds so far: of the whole machine, of each thing measured, of this process; and the wall clock."""

    at: float
    machine: float
    measured: dict[str, float]
    own: float

    @classmethod
    def now(cls, measured: Sequence[Measured]) -> Moment:
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice  # guests are in user already
        return cls(time.perf_counter(), busy, {one.group: one.cpu_seconds() for one in measured}, _own())

    def others_since(self, before: Moment) -> float:
        """Share of one processor that was used by anything but us since `before`."""
        ours = sum(self.measured.values()) - sum(before.measured.values()) + self.own - before.own
        return max(0.0, self.machine - before.machine - ours) / (self.at - before.at)

    def idlers_since(self, before: Moment, busy: str) -> float:
        """Share of one processor that groups used whose turn it was not: more than a little, and they spin."""
        used = sum(self.measured[group] - before.measured[group] for group in self.measured if group != busy)
        return used / (self.at - before.at)


def _own() -> float:
    return float(sum(psutil.Process().cpu_times()[:2]))
