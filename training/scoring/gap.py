"""How much better a model is in one language than in the other, on the same items, and whether that may be chance.

The difference is paired: each item's score in Chinese less its score in English. Its interval is a percentile
bootstrap (Efron 1979) over the pictures, for questions about one picture are not independent. Where each item has its
own picture and scores are only 0 or 1, McNemar's exact test says how likely so uneven a split of the items that differ
is, were both languages alike. A gap is marked when its 95 % interval excludes 0.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLES = 2000
LEVEL = 0.95
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Gap:
    """`difference` is Chinese less English in the metric's own unit, `low` and `high` its interval.

    `p` is McNemar's exact two-sided probability, None where it does not apply.
    """

    metric: str
    items: int
    en: float
    zh: float
    difference: float
    low: float
    high: float
    p: float | None

    @property
    def significant(self) -> bool:
        return self.low > 0 or self.high < 0


def gap(
    metric: str,
    en: Mapping[str, float],
    zh: Mapping[str, float],
    pictures: Mapping[str, Hashable] | None = None,
    seed: int = 0,
) -> Gap | None:
    """Over the items that both languages have, by key; None when there are fewer than two.

    `pictures` says what each item is about (default: each its own).
    """
    keys = [key for key in en if key in zh]
    if len(keys) < 2:
        return None
    first, second = (np.array([scores[key] for key in keys]) for scores in (en, zh))
    differences = second - first
    numbers: dict[Hashable, int] = {}
    about = np.array([numbers.setdefault(pictures[key] if pictures else key, len(numbers)) for key in keys])
    low, high = _interval(differences, about, seed)
    binary = bool(np.isin(np.concatenate([first, second]), (0.0, 1.0)).all())
    independent = len(numbers) == len(keys)
    p = mcnemar(int((differences > 0).sum()), int((differences < 0).sum())) if binary and independent else None
    mean = float(differences.mean())
    return Gap(metric, len(keys), float(first.mean()), float(second.mean()), mean, low, high, p)


def mcnemar(only_second: int, only_first: int) -> float:
    """Exact two-sided: how likely the discordant pairs split at least so unevenly by fair coins."""
    discordant, fewer = only_first + only_second, min(only_first, only_second)
    if not discordant:
        return 1.0
    logs = (
        math.lgamma(discordant + 1) - math.lgamma(k + 1) - math.lgamma(discordant - k + 1) for k in range(fewer + 1)
    )
    tail = sum(math.exp(one - discordant * math.log(2)) for one in logs)
    return min(1.0, 2 * tail)


def _interval(differences: NDArray[np.float64], about: NDArray[np.int64], seed: int) -> tuple[float, float]:
    """`about` are the pictures' numbers: pictures are drawn, each with all its items."""
    sums, counts = np.bincount(about, weights=differences), np.bincount(about)
    draw, pictures = np.random.default_rng(seed), len(sums)
    means: list[float] = []
    while len(means) < SAMPLES:
        some = min(SAMPLES - len(means), max(1, _CHUNK // pictures))
        picks = draw.integers(0, pictures, size=(some, pictures))
        means += (sums[picks].sum(axis=1) / counts[picks].sum(axis=1)).tolist()
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)
