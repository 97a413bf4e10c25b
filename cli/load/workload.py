"""What is asked: questions of drawn lengths, pictures, and conversations that go on.

Two streams of chance: the seed alone decides lengths, who shows a picture, who reuses one and who follows up; words and
pixels depend on the run's nonce besides, so that a second run with the same seed asks for the same work and finds
nothing of it in the server's caches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cli.load.lengths import Lengths
from cli.load.pictures import Album
from cli.load.request import Picture, Request
from ziya.prompt import Turn

_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work number night point home water room mother area "
    "money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea body information "
    "back parent face other level office door health person art war history party result change morning reason "
    "research girl guy moment air teacher force education foot boy age policy music process street table light"
)
WORDS = _TEXT.split()


@dataclass(frozen=True)
class Mix:
    """What requests are like. `follow_ups` of them go on with a conversation, of at most `max_turns` questions."""

    prompt: Lengths
    answer: Lengths
    image_share: float = 0.0
    follow_ups: float = 0.0
    max_turns: int = 4


class Workload:
    """Makes one request after another. `album` is None where no pictures are shown."""

    def __init__(self, mix: Mix, album: Album | None, seed: int, nonce: int, *, tokens_per_word: float = 1.0) -> None:
        self._mix, self._album, self._tokens_per_word = mix, album, tokens_per_word
        self._draw, self._content = np.random.default_rng(seed), np.random.default_rng((seed, nonce))
        self._paused: deque[tuple[Turn[Picture], ...]] = deque()

    def __iter__(self) -> Iterator[Request]:
        number = 0
        while True:
            yield self._next(number)
            number += 1

    def goes_on(self, request: Request, answer: str) -> None:
        """After a complete answer: its conversation waits for a follow-up, if it may have one."""
        questions = sum(turn.role == "user" for turn in request.turns)
        if self._mix.follow_ups > 0 and questions < self._mix.max_turns and answer:
            self._paused.append((*request.turns, Turn("assistant", answer)))

    def _next(self, number: int) -> Request:
        # Every request takes the same draws, so that what one of them becomes does not change those after it.
        text = self._words(max(1, round(self._mix.prompt.draw(self._draw) / self._tokens_per_word)))
        max_tokens = self._mix.answer.draw(self._draw)
        shows, follows, reuses, which = self._draw.random(4)
        # Who has waited longest goes on first. Where nobody has finished yet, it is a new conversation after all.
        if follows < self._mix.follow_ups and self._paused:
            return Request(number, (*self._paused.popleft(), Turn("user", text)), max_tokens)
        if self._album is None or shows >= self._mix.image_share:
            return Request(number, (Turn("user", text),), max_tokens)
        picture, before = self._album.show(reuses, which)
        return Request(number, (Turn("user", text, (picture,)),), max_tokens, shown=1, reused=int(before))

    def _words(self, count: int) -> str:
        return " ".join(WORDS[i] for i in self._content.integers(0, len(WORDS), count))
