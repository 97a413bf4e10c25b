"""How fast an answer is written, token by token.

A response brings several tokens when many answers are written at once, or when a character takes more than one. The
time between two responses alone would tell of the sending and not of the model, so it is divided over the tokens.
"""

from __future__ import annotations

import time

from prometheus_client import Histogram


class Pace:
    """Of one answer; made when its first response has come."""

    def __init__(self, seconds: Histogram) -> None:
        self._seconds = seconds
        self._last = time.perf_counter()

    def came(self, tokens: int) -> None:
        """A further response with so many tokens. Without any, the time counts for the next one."""
        if tokens <= 0:
            return
        now = time.perf_counter()
        each = (now - self._last) / tokens
        self._last = now
        for _ in range(tokens):
            self._seconds.observe(each)
