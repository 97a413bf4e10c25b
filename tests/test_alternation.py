"""Contestants of a benchmark take turns in orders that favour none of them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from benchmarks.alternation import order


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7])
def test_each_comes_after_each_other_equally_often(size: int) -> None:
    repeats = 1 + size % 2
    orders = [order(size, number) for number in range(repeats * size)]
    assert all(sorted(one) == list(range(size)) for one in orders)
    assert Counter(one[0] for one in orders) == dict.fromkeys(range(size), repeats)
    followed = Counter(pair for one in orders for pair in pairwise(one))
    assert followed == {(a, b): repeats for a in range(size) for b in range(size) if a != b}


def test_four_contestants_by_hand() -> None:
    assert [order(4, number) for number in range(4)] == [[0, 1, 3, 2], [1, 2, 0, 3], [2, 3, 1, 0], [3, 0, 2, 1]]
