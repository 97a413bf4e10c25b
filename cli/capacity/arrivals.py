"""Who asks what and when: made from a seed (steady, in bursts, a day's ramp), or read from a recorded trace.

A trace file is CSV with a head line, or a JSON object a line: `seconds` from its start, `image` (any name; equal names
are equal pictures; empty or missing is a request without one), `prompt_tokens` (of the text) and `answer_tokens`.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cli.text import CommandError


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. `at` is in seconds; `image` is None without one; `prompt_tokens` counts the text alone."""

    at: float
    image: str | None = None
    prompt_tokens: int = 64
    answer_tokens: int = 128


@dataclass(frozen=True)
class Mix:
    """What requests are like. `image_share` of them show a picture, `reuse` of those one that was shown before.

    Lengths are drawn around their means like an exponential, from 1 on; `varied` False makes all of them the mean.
    """

    image_share: float = 0.8
    reuse: float = 0.3
    prompt_tokens: int = 64
    answer_tokens: int = 128
    varied: bool = True


Rate = Callable[[float], float]


def steady(rps: float) -> Rate:
    """Requests a second that do not change: with `poisson`, independent users."""
    return lambda _: rps


def bursts(low: float, high: float, period: float, share: float) -> Rate:
    """`high` for `share` of each `period` seconds, beginning with `low`."""
    return lambda at: high if at % period >= period * (1 - share) else low


def ramp(low: float, high: float, period: float) -> Rate:
    """From `low` to `high` and back in `period` seconds, as a cosine: a day in short."""
    return lambda at: low + (high - low) * (1 - math.cos(2 * math.pi * at / period)) / 2


def poisson(rate: Rate, peak: float, seconds: float, mix: Mix, seed: int) -> list[Arrival]:
    """Arrivals of a Poisson process whose rate changes, at most `peak` a second (thinning, Lewis and Shedler 1979)."""
    draw = np.random.default_rng(seed)
    candidates = _times(draw, peak, seconds)
    kept = [at for at, odds in zip(candidates, draw.random(len(candidates)), strict=True) if odds * peak < rate(at)]
    prompts, answers = (_lengths(draw, mean, len(kept), mix.varied) for mean in (mix.prompt_tokens, mix.answer_tokens))
    arrivals, shown = list[Arrival](), 0
    shows, again, which = draw.random(len(kept)), draw.random(len(kept)), draw.random(len(kept))
    for number, at in enumerate(kept):
        image = None
        if shows[number] < mix.image_share:
            reused = shown > 0 and again[number] < mix.reuse
            # What is shown again was mostly shown lately: one of the last hundred pictures.
            image = f"picture {shown - 1 - int(which[number] * min(shown, 100)) if reused else shown}"
            shown += not reused
        arrivals.append(Arrival(at, image, int(prompts[number]), int(answers[number])))
    return arrivals


def _times(draw: np.random.Generator, rate: float, seconds: float) -> list[float]:
    times = np.empty(0)
    while not len(times) or times[-1] < seconds:
        more = np.cumsum(draw.exponential(1 / rate, max(64, int(rate * seconds * 1.1))))
        times = np.concatenate([times, (times[-1] if len(times) else 0.0) + more])
    return [float(at) for at in times[times < seconds]]


def _lengths(draw: np.random.Generator, mean: int, count: int, varied: bool) -> npt.NDArray[np.int64]:
    """Geometric, whose mean it has: an exponential in whole tokens."""
    return draw.geometric(1 / mean, count) if varied else np.full(count, mean)


def read_trace(path: Path) -> list[Arrival]:
    """The arrivals of a file, in order of time. Raises CommandError with the line that cannot be used."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read the trace {path}: {error}", 2) from error
    lines = text.splitlines()
    rows = _json_lines(lines, path) if text.lstrip().startswith("{") else enumerate(csv.DictReader(lines), 2)
    arrivals = sorted(_arrivals(rows, path), key=lambda arrival: arrival.at)
    if not arrivals:
        raise CommandError(f"the trace {path} has no requests", 2)
    return arrivals


def _json_lines(lines: list[str], path: Path) -> Iterable[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise CommandError(f"line {number} of {path} is not JSON", 2) from error


def _arrivals(rows: Iterable[tuple[int, Mapping[str, Any]]], path: Path) -> Iterable[Arrival]:
    for number, row in rows:
        try:
            at, prompt, answer = float(row["seconds"]), int(row["prompt_tokens"]), int(row["answer_tokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise CommandError(
                f"line {number} of {path} needs the numbers seconds, prompt_tokens and answer_tokens", 2
            ) from error
        if not (0 <= at < math.inf and prompt >= 1 and answer >= 1):
            raise CommandError(f"line {number} of {path}: seconds must be at least 0, and tokens at least 1", 2)
        image = row.get("image")
        yield Arrival(at, str(image) if image not in (None, "") else None, prompt, answer)
