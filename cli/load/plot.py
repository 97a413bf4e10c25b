"""A run as a picture: how its latencies are spread, and what happened over time. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from cli.load.request import Answer
from cli.load.slo import Objective

WINDOWS = 40
LEAST_GAP = 0.1  # ms; below are pieces that were read together
STEPS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 300.0, 600.0)
BLUE, ORANGE, GREEN, RED, GREY = "tab:blue", "tab:orange", "tab:green", "tab:red", "0.5"


def plot(answers: Sequence[Answer], seconds: float, objective: Objective | None, title: str, path: Path) -> None:
    """Writes a picture of the kind that the path's ending says (SVG, PNG, PDF). Text stays text in an SVG."""
    limits = objective.limits if objective else {}
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ziya", "font.size": 9, "axes.grid": True}):
        mpl.rcParams.update({"grid.color": "0.92", "axes.axisbelow": True})
        figure = Figure(figsize=(11.0, 7.0), layout="constrained")
        figure.suptitle(title, fontsize=10)
        (first, gaps), (each, rates) = figure.subplots(2, 2)
        _spread(first, answers, limits)
        _gaps(gaps, answers, limits)
        _over_time(each, answers, seconds, limits)
        _rates(rates, answers, seconds)
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def _spread(axes: mpl.axes.Axes, answers: Sequence[Answer], limits: dict[str, float]) -> None:
    good = [answer for answer in answers if answer.succeeded]
    _share(axes, [1000 * answer.ttft for answer in good if answer.ttft is not None], BLUE, "first token")
    _share(axes, [1000 * answer.e2e for answer in good if answer.e2e is not None], ORANGE, "whole answer")
    _limits(axes, {"ttft": BLUE, "e2e": ORANGE}, limits, 1000.0, upright=True)
    _milliseconds(axes, "first token and whole answer")


def _gaps(axes: mpl.axes.Axes, answers: Sequence[Answer], limits: dict[str, float]) -> None:
    good = [answer for answer in answers if answer.succeeded]
    _share(axes, [1000 * gap for answer in good for gap in answer.gaps], GREEN, "between pieces of text")
    _share(axes, [1000 * answer.tpot for answer in good if answer.tpot is not None], GREY, "per token, by request")
    _limits(axes, {"itl": GREEN, "tpot": GREY}, limits, 1000.0, upright=True)
    _milliseconds(axes, "while the answer is written")
    axes.set_xlim(left=max(axes.get_xlim()[0], LEAST_GAP))


def _over_time(axes: mpl.axes.Axes, answers: Sequence[Answer], seconds: float, limits: dict[str, float]) -> None:
    good = [answer for answer in answers if answer.succeeded]
    starts = [answer.intended for answer in good]
    size = 12 if len(good) <= 300 else 3
    axes.scatter(starts, [answer.ttft or np.nan for answer in good], s=size, color=BLUE, label="first token")
    axes.scatter(starts, [answer.e2e or np.nan for answer in good], s=size, color=ORANGE, label="whole answer")
    failed = [answer for answer in answers if answer.failure]
    if failed:
        ends = [answer.e2e or np.nan for answer in failed]
        axes.scatter([answer.intended for answer in failed], ends, s=24, marker="x", color=RED, label="failed")
    _limits(axes, {"ttft": BLUE, "e2e": ORANGE}, limits, 1.0, upright=False)
    axes.set(
        title="each request",
        xlabel="seconds into the run, when it was due",
        ylabel="seconds it took",
        xlim=(0, seconds),
    )
    axes.set_yscale("log")
    _plain(axes.yaxis)
    axes.legend(fontsize=8)


def _rates(axes: mpl.axes.Axes, answers: Sequence[Answer], seconds: float) -> None:
    window = next((step for step in STEPS if seconds / step <= WINDOWS), seconds / WINDOWS)
    edges = np.arange(0, seconds + window, window)
    good = [answer for answer in answers if answer.succeeded]
    # A piece may hold several tokens: each counts for its share of its answer's tokens.
    times = [at for answer in good for at in answer.pieces]
    weights = [answer.tokens / len(answer.pieces) for answer in good for _ in answer.pieces]
    counts, _ = np.histogram(times, edges, weights=weights)
    axes.stairs(counts / window, edges, color=GREEN, fill=True, alpha=0.35, label="tokens/s")
    axes.set(
        title="over time",
        xlabel="seconds into the run",
        ylabel=f"tokens/s, in steps of {window:g} s",
        xlim=(0, seconds),
    )
    beside = axes.twinx()
    beside.grid(visible=False)
    beside.stairs(_in_flight(answers, edges, seconds), edges, color=BLUE, baseline=None, label="in flight")
    beside.set_ylabel("requests in flight, mean")
    for one in (axes, beside):
        one.set_ylim(0, max(1.0, 1.25 * one.dataLim.ymax))  # room for the legend
    beside.yaxis.set_major_locator(MaxNLocator(integer=True))
    handles = [*axes.get_legend_handles_labels()[0], *beside.get_legend_handles_labels()[0]]
    beside.legend(handles=handles, fontsize=8, loc="upper left", ncols=2)


def _in_flight(answers: Sequence[Answer], edges: npt.NDArray[np.float64], seconds: float) -> npt.NDArray[np.float64]:
    """The mean of each window; the last one ends with the run."""
    lows, highs = edges[:-1], np.minimum(edges[1:], seconds)
    total = np.zeros(len(lows))
    for answer in answers:
        if answer.sent is not None:
            end = seconds if answer.ended is None else answer.ended
            total += np.maximum(0.0, np.minimum(highs, end) - np.maximum(lows, answer.sent))
    mean: npt.NDArray[np.float64] = total / np.maximum(highs - lows, 1e-9)
    return mean


def _share(axes: mpl.axes.Axes, values: Sequence[float], colour: str, label: str) -> None:
    """The share of values that are at most so large."""
    if values:
        axes.ecdf(values, color=colour, label=f"{label}: p50 {_short(values, 50)}, p99 {_short(values, 99)} ms")


def _short(values: Sequence[float], percentile: float) -> str:
    value = float(np.percentile(values, percentile))
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _limits(
    axes: mpl.axes.Axes, colours: dict[str, str], limits: dict[str, float], unit: float, *, upright: bool
) -> None:
    for name, colour in colours.items():
        if name in limits:
            draw = axes.axvline if upright else axes.axhline
            draw(limits[name] * unit, color=colour, linestyle=":", label=f"{name} objective" if upright else None)


def _milliseconds(axes: mpl.axes.Axes, title: str) -> None:
    axes.set(
        title=title,
        xlabel="milliseconds",
        ylabel="share that took at most so long",
        ylim=(0, 1.4),
        yticks=(0, 0.25, 0.5, 0.75, 1),
    )
    axes.set_xscale("log")
    _plain(axes.xaxis)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="upper left")


def _plain(axis: mpl.axis.Axis) -> None:
    """A logarithmic axis whose ticks are numbers as people write them."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > 1000 * low else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
