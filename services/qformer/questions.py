"""What a Q-Former can be asked, each a small frozen value, so that one batcher serves bus and RPCs alike.

Shapes: N features of width V, Q visual tokens of width D, embeddings of width J. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Ids: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """Visual tokens, float16 [Q, D], of features [N, V]; `ids` is None unless the Q-Former reads the instruction."""

    features: Array
    ids: Ids | None


@dataclass(frozen=True, slots=True, eq=False)
class EmbedImage:
    """Unit vectors, float32 [Q, J], of features [N, V]."""

    features: Array


@dataclass(frozen=True, slots=True)
class EmbedText:
    """A unit vector, float32 [1, J]."""

    ids: Ids


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """float32 [2]: the probability that features [N, V] and text belong together, and their largest cosine."""

    features: Array
    ids: Ids


Question: TypeAlias = Query | EmbedImage | EmbedText | Match
