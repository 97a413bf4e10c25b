"""Who is waiting for an answer, so that work for somebody who has left, or pressed stop, ends.

gradio notices a closed tab by the stream of its answer. A tab that closes before that stream is open is noticed only by
its heartbeat, which ends no work by itself; a stop before the browser knows the question's number ends none either.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Visitors:
    """Turns under way, by the session of their tab."""

    def __init__(self) -> None:
        self._turns: dict[str, set[asyncio.Event]] = defaultdict(set)

    @contextmanager
    def turn(self, session: str) -> Iterator[asyncio.Event]:
        """An event that is set when the tab has left, or wants no more."""
        left = asyncio.Event()
        self._turns[session].add(left)
        try:
            yield left
        finally:
            self._turns[session].discard(left)
            if not self._turns[session]:
                del self._turns[session]

    def leave(self, session: str) -> None:
        for left in self._turns.get(session, ()):
            left.set()
