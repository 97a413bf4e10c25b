"""A simulated load as a picture: its rate, the first token's 99th percentile, and the replicas, over time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.scaling_traces import Trace
from cli.capacity.request import STAGES
from cli.capacity.simulate import Outcome

WINDOW = 15.0
MINUTE = 60.0


def plot(outcomes: Mapping[str, Outcome], trace: Trace, late: float, path: Path) -> None:
    """Writes an SVG with one column for each outcome. Text stays text, so that the file is small."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ziya", "font.size": 9}):
        figure = Figure(figsize=(5.2 * len(outcomes), 6.0), layout="constrained")
        axes = figure.subplots(3, len(outcomes), sharex=True, sharey="row", squeeze=False, height_ratios=(1, 2, 2))
        for column, (name, outcome) in enumerate(outcomes.items()):
            top, middle, bottom = axes[:, column]
            top.set_title(name)
            _rates(top, outcome, trace)
            _first_tokens(middle, outcome, trace, late)
            _replicas(bottom, outcome, trace)
            bottom.set_xlabel("minutes")
        for row, label in enumerate(("requests a second", "first token, p99, seconds", "replicas ready")):
            axes[row, 0].set_ylabel(label)
        axes[0, 0].legend(fontsize=7)
        axes[2, 0].legend(fontsize=7)
        figure.savefig(path, metadata={"Date": None})


def _rates(axes: mpl.axes.Axes, outcome: Outcome, trace: Trace) -> None:
    edges = np.arange(0, trace.seconds + WINDOW, WINDOW)
    for label, colour, chosen in (
        ("asked", "0.6", outcome.requests),
        ("refused", "tab:red", [request for request in outcome.requests if request.outcome != "answered"]),
    ):
        counts, _ = np.histogram([request.arrival.at for request in chosen], edges)
        axes.stairs(counts / WINDOW, edges / MINUTE, label=label, color=colour)


def _first_tokens(axes: mpl.axes.Axes, outcome: Outcome, trace: Trace, late: float) -> None:
    begins = np.arange(0, trace.seconds, WINDOW)
    found = [outcome.first_tokens(begin, begin + WINDOW) for begin in begins]
    p99 = np.array([float(np.percentile(one, 99)) if one else np.nan for one in found])
    axes.plot((begins + WINDOW / 2) / MINUTE, p99, color="tab:blue")
    axes.axhline(late, color="0.6", linestyle=":")
    axes.set_yscale("log")


def _replicas(axes: mpl.axes.Axes, outcome: Outcome, trace: Trace) -> None:
    for number, stage in enumerate(STAGES):
        changes = outcome.changes[stage]
        times = [*(at for at, _, _ in changes), trace.seconds]
        ready = [*(count for _, _, count in changes), changes[-1][2]]
        # A little apart, where lines would cover one another.
        axes.step(np.array(times) / MINUTE, np.array(ready) + 0.04 * number, where="post", label=stage)
