"""Samples of one picture side by side: what they begin with alike stands in a row once, and each goes on from there.

Attention is causal: the keys and values of a beginning do not depend on what follows. So a row may hold the first
sample in whole, and of every further one only what differs, at the positions that it would have alone:

    [picture][question in English][caption 1][caption 2][question in Chinese][caption 3] …

A caption sees what its own sample begins with and itself, and never another caption. The order is that of a walk
through a tree, branch after branch: so whatever sees a position stands between it and the end of its branch, and that
end, `until`, is all that a mask needs to know. Losses and gradients are those of rows of one sample each; only the
order of the sums differs.

What is learnt is never shared, and neither is the position before it, which predicts it. Samples that show no picture,
or another one, share nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Strand:
    """A sample as it is compared: a key for each position, where its first picture ends (0 without one), and how many
    positions may be shared at most."""

    keys: Sequence[tuple[int, int]]
    picture_end: int
    most: int


# A sample's number, and how many of its first positions stand in the row already.
Branch = tuple[int, int]


def trees(strands: Sequence[Strand], room: int) -> list[list[Branch]]:
    """All samples, those with a common beginning together, in the order of a walk; none is longer than `room`."""
    found: list[list[Branch]] = []
    before: Strand | None = None
    size = 0
    for number in sorted(range(len(strands)), key=lambda number: (strands[number].keys, number)):
        strand = strands[number]
        shared = _common(before, strand) if before is not None else 0
        size += len(strand.keys) - shared
        if shared == 0 or size > room:
            found.append([])
            shared, size = 0, len(strand.keys)
        found[-1].append((number, shared))
        before = strand
    return found


def _common(one: Strand, other: Strand) -> int:
    most = min(one.most, other.most)
    pairs = zip(one.keys[:most], other.keys[:most], strict=True)
    common = next((place for place, (left, right) in enumerate(pairs) if left != right), most)
    return common if 0 < max(one.picture_end, other.picture_end) <= common else 0


def untils(lengths: Sequence[int], row: Sequence[Branch]) -> list[int]:
    """For each position of a row of trees: before which position of the row those end that see it."""
    path, until = list[int](), list[int]()
    for number, shared in row:
        begin, end = len(until), len(until) + lengths[number] - shared
        for place in path[shared:]:
            until[place] = begin
        path[shared:] = range(begin, end)
        until += [0] * (end - begin)
    for place in path:
        until[place] = len(until)
    return until
