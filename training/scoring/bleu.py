"""BLEU-1 to BLEU-4 of captions (Papineni et al. 2002), as the COCO caption evaluation counts them.

Clipped n-gram precisions over the whole corpus, their geometric mean without smoothing, and the brevity penalty by
the reference that is closest in length (of two equally close ones the shorter). A precision of 0 gives 0, by way of
the same tiny numbers that the reference implementation adds, so that its figures come out to the last digit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

ORDERS = 4
_SMALL, _TINY = 1e-9, 1e-15
Words = Sequence[str]


def bleu(said: Sequence[Words], truths: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 … BLEU-4 between 0 and 1. `truths[n]` are the references of caption n, at least one."""
    right, guessed = [0] * ORDERS, [0] * ORDERS
    said_length = truth_length = 0
    for words, references in zip(said, truths, strict=True):
        said_length += len(words)
        truth_length += min((abs(len(one) - len(words)), len(one)) for one in references)[1]
        for order in range(1, ORDERS + 1):
            guessed[order - 1] += max(0, len(words) - order + 1)
            right[order - 1] += _clipped(words, references, order)
    scores, product = [], 1.0
    for order in range(ORDERS):
        product *= (right[order] + _TINY) / (guessed[order] + _SMALL)
        scores.append(product ** (1 / (order + 1)))
    ratio = (said_length + _TINY) / (truth_length + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return [score * penalty for score in scores]


def ngrams(words: Words, order: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram of one order occurs."""
    return Counter(tuple(words[at : at + order]) for at in range(len(words) - order + 1))


def _clipped(words: Words, references: Sequence[Words], order: int) -> int:
    """N-grams of the caption that a reference has, each at most as often as the reference that has it most often."""
    most: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        most |= ngrams(reference, order)
    return sum((ngrams(words, order) & most).values())
