"""ROUGE-L of captions (Lin 2004): the longest common subsequence with the references, as the COCO evaluation counts it.

Precision and recall are each the best over the references, and their F has beta 1.2.
"""

from __future__ import annotations

from collections.abc import Sequence

BETA = 1.2
Words = Sequence[str]


def rouge_l(said: Words, truths: Sequence[Words]) -> float:
    """Between 0 and 1; 0 for a caption without words."""
    if not said:
        return 0.0
    common = [longest_common(said, truth) for truth in truths]
    precision = max(common) / len(said)
    recall = max(length / len(truth) if truth else 0.0 for length, truth in zip(common, truths, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common(first: Words, second: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for at, other in enumerate(second, 1):
            above = row[at]
            row[at] = diagonal + 1 if word == other else max(above, row[at - 1])
            diagonal = above
    return row[-1]
