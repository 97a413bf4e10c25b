"""One thing that a model is asked in an evaluation, and what is known about the right answer.

An item belongs to one language. The same question about the same picture in two languages is two items of one key.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from training.errors import BadSample


@dataclass(frozen=True)
class Picture:
    """A file's bytes when they are wanted. Equal ones are the same picture, which many questions may be about."""

    read: Callable[..., bytes]
    where: tuple[Hashable, ...] = ()

    def __call__(self) -> bytes:
        """Raises BadSample where it cannot be read."""
        return self.read(*self.where)


@dataclass(frozen=True)
class Item:
    """`truths` are captions or answers; how many a right answer needs depends on the metric.

    `options` are a multiple
    choice's, `right` is the number of the right one. `group` is what counts as the same thing in retrieval; `kind`
    divides the items in the report (GQA's types, NoCaps' domains).
    """

    key: str
    language: str
    truths: tuple[str, ...]
    question: str = ""
    pictures: tuple[Picture, ...] = field(default=(), compare=False)
    options: tuple[str, ...] = ()
    right: int | None = None
    group: str | None = None
    kind: str = ""


# What a reader gives: an item, or why there is none.
Read = Item | BadSample
