"""Guesses at an answer's next tokens: what followed when its last few tokens stood in prompt or answer before.

Answers quote: their prompt, an earlier turn, themselves. A guess costs a row in a step whose time is mostly the reading
of weights, and each right one saves a step. (Prompt lookup decoding, Saxena 2023.)
"""

from __future__ import annotations

from services.llama.engine.prefix import VISUAL

GRAMS = (3, 2)  # how many of the last tokens must have stood together before: the longer first


class Lookup:
    """Follows `tokens`, a request's prompt and answer, as they grow; each is looked at once."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._seen = 0
        self._after: dict[tuple[int, ...], int] = {}  # what followed a gram when it last stood somewhere

    def guess(self, count: int) -> list[int]:
        """At most `count` tokens. A guess that reaches the end of what is known goes on with itself."""
        self._look()
        tokens, known = self._tokens, len(self._tokens)
        for size in GRAMS:
            after = self._after.get(tuple(tokens[known - size :]))
            if known >= size and after is not None:
                break
        else:
            return []
        guesses = list[int]()
        for position in range(after, after + count):
            token = tokens[position] if position < known else guesses[position - known]
            if token == VISUAL:
                break
            guesses.append(token)
        return guesses

    def _look(self) -> None:
        """Notes the grams that something follows already, so not the last ones."""
        for after in range(max(1, self._seen), len(self._tokens)):
            for size in GRAMS:
                gram = tuple(self._tokens[after - size : after]) if after >= size else ()
                if gram and VISUAL not in gram:
                    self._after[gram] = after
        self._seen = len(self._tokens)
