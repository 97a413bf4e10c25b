"""CIDEr-D of captions (Vedantam et al. 2015, arXiv 1411.5726), as the COCO caption evaluation counts it.

N-grams of 1 to 4 words are weighted by how few pictures' references have them; the score is the mean over the orders
of the clipped cosine with each reference, times a Gaussian of the difference in length (sigma 6), times 10. What the
COCO evaluation and most papers call CIDEr is this CIDEr-D, without stemming. The document frequencies are those of the
references at hand, so a score depends on which items are evaluated together. A caption of one word has no longer
n-grams and gets at most 2.5.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.scoring.bleu import ORDERS, ngrams

SIGMA = 6.0
Words = Sequence[str]
Gram = tuple[str, ...]


def cider_d(said: Sequence[Words], truths: Sequence[Sequence[Words]]) -> list[float]:
    """A score a caption, 0 to 10; their mean is the corpus' score."""
    documents: Counter[Gram] = Counter()
    for references in truths:
        documents.update({gram for reference in references for gram in _counts(reference)})
    whole = math.log(len(truths)) if truths else 0.0
    rarity = {gram: whole - math.log(count) for gram, count in documents.items()}
    scores = []
    for words, references in zip(said, truths, strict=True):
        mine = _Vector.of(words, rarity, whole)
        similar = sum(_similar(mine, _Vector.of(reference, rarity, whole)) for reference in references)
        scores.append(10.0 * similar / ORDERS / len(references))
    return scores


@dataclass(frozen=True)
class _Vector:
    """TF-IDF weights by order, their norms, and the length as the reference implementation has it: in bigrams."""

    weights: Sequence[Mapping[Gram, float]]
    norms: Sequence[float]
    length: int

    @classmethod
    def of(cls, words: Words, rarity: Mapping[Gram, float], whole: float) -> _Vector:
        weights: list[dict[Gram, float]] = [{} for _ in range(ORDERS)]
        for gram, count in _counts(words).items():
            weights[len(gram) - 1][gram] = count * rarity.get(gram, whole)
        norms = [math.sqrt(sum(value * value for value in order.values())) for order in weights]
        return cls(weights, norms, max(0, len(words) - 1))


def _counts(words: Words) -> Counter[Gram]:
    counts: Counter[Gram] = Counter()
    for order in range(1, ORDERS + 1):
        counts += ngrams(words, order)
    return counts


def _similar(mine: _Vector, theirs: _Vector) -> float:
    """Sum over the orders."""
    penalty = math.exp(-((mine.length - theirs.length) ** 2) / (2 * SIGMA**2))
    total = 0.0
    for order in range(ORDERS):
        norm = mine.norms[order] * theirs.norms[order]
        if norm:
            other = theirs.weights[order]
            common = ((weight, other[gram]) for gram, weight in mine.weights[order].items() if gram in other)
            total += sum(min(weight, truth) * truth for weight, truth in common) / norm * penalty
    return total
