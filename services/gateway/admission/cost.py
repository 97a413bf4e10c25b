"""What a request will take of the system, told before any of it is done: images, and positions of the language model.

The gateway has no tokenizer of the language model, and needs none: a third of the UTF-8 bytes is about a token for a
Chinese character and somewhat more than there are for English, so a request is rather thought too large. What it
really took is known at its end, and corrects what its key has paid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.gateway.dialogue import Ask
from ziya.checkpoint import CheckpointConfig

BYTES_PER_TOKEN = 3


@dataclass(frozen=True, slots=True)
class Cost:
    """`tokens`: of the prompt with its images, and of the longest answer it allows."""

    images: int = 0
    tokens: int = 0

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.images - other.images, self.tokens - other.tokens)


class Costs:
    """Judges requests to one checkpoint."""

    def __init__(self, config: CheckpointConfig) -> None:
        self._queries, self._context = config.queries, config.context_length
        self._answer = config.generation.max_tokens

    def of(self, ask: Ask) -> Cost:
        """No request takes more tokens than the model's context."""
        dialogue = ask.dialogue
        images = sum(len(turn.images) for turn in dialogue.turns)
        size = sum(_bytes(turn.text) for turn in dialogue.turns) + _bytes(dialogue.system)
        answer = self._answer if ask.sampling.max_tokens is None else ask.sampling.max_tokens
        tokens = math.ceil(size / BYTES_PER_TOKEN) + images * self._queries + answer
        return Cost(images, min(tokens, self._context))


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))
