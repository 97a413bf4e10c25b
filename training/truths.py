"""What a record is asked in an evaluation, and every answer that it calls right.

A record may list several captions, or several answers to one question. Training draws one; an evaluation asks the
first question in the first wording and accepts any. So the record is worded again and again, with every choice that
its own lists offer, and the answers are those of all wordings in which the same was asked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from training.data.record import Conversation, Record
from training.data.tasks import conversation
from training.data.templates import Wordings
from training.errors import BadSample
from training.recipe import Check

# Dialogues with many variants of every turn have too many to try all.
_MOST = 256


class First(random.Random):
    """Always takes the first."""

    def choice(self, seq: Any) -> Any:
        return seq[0]


class _Walk(First):
    """Takes from a record's lists what `picks` says, then the first; of wordings, which are tuples, the first."""

    def __init__(self, picks: Sequence[int]) -> None:
        super().__init__()
        self.picks = list(picks)
        self.sizes: list[int] = []

    def choice(self, seq: Any) -> Any:
        if not isinstance(seq, list):
            return super().choice(seq)
        place = len(self.sizes)
        self.sizes.append(len(seq))
        if place == len(self.picks):
            self.picks.append(0)
        return seq[self.picks[place]]

    def following(self) -> list[int] | None:
        """The picks of the next walk; None after the last."""
        picks = self.picks[: len(self.sizes)]
        while picks and picks[-1] + 1 == self.sizes[len(picks) - 1]:
            picks.pop()
        return [*picks[:-1], picks[-1] + 1] if picks else None


@dataclass(frozen=True)
class Asked:
    """A conversation whose last turn is to be answered, and the answers that are right."""

    conversation: Conversation
    truths: tuple[str, ...]


def asked(record: Record, check: Check, templates: Mapping[str, Wordings]) -> Asked:
    """Raises BadSample when the record does not fit the check, BadConfig when the check cannot be."""
    every = _conversations(record, check, templates)
    first = next(every)
    truths = {one.turns[-1].text: None for one in every if one.turns[:-1] == first.turns[:-1]}
    return Asked(first, tuple({first.turns[-1].text: None, **truths}))


def _conversations(record: Record, check: Check, templates: Mapping[str, Wordings]) -> Iterator[Conversation]:
    """All that the record can be worded as; only the first must be usable."""
    yield conversation(record, check, templates, First())
    picks = list[int]()
    for _ in range(_MOST):
        walk = _Walk(picks)
        with suppress(BadSample):
            yield conversation(record, check, templates, walk)
        if (following := walk.following()) is None:
            return
        picks = following
