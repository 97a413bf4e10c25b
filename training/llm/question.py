"""What is asked, and what comes back. A question is a value; so is an answer, and so is the lack of one.

A question's digest names it in the ledger, and is the Idempotency-Key that its request carries: the same question to
the same model, asked again after a kill, is the same request.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from training.llm.endpoint import Endpoint

# A greedy answer would only be the same again.
SECOND_TEMPERATURE = 0.5


@dataclass(frozen=True)
class Question:
    """`messages` are OpenAI's, images as data: URLs. With a JSON `schema` the answer must be JSON that fits it."""

    messages: tuple[Mapping[str, Any], ...]
    schema: Mapping[str, Any] | None = None
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0

    def digest(self, endpoint: Endpoint) -> str:
        """SHA-256 of the model and of all that decides the answer, as 64 hexadecimal digits."""
        about = [endpoint.model, endpoint.revision, self._content, self.max_tokens, self.temperature, self.seed]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def again(self, number: int) -> Question:
        """The question as it is put the `number`-th time after an answer that was no use; 0 is itself."""
        if not number:
            return self
        return replace(self, seed=self.seed + number, temperature=max(self.temperature, SECOND_TEMPERATURE))

    @cached_property
    def _content(self) -> str:
        text = json.dumps([self.messages, self.schema], sort_keys=True, ensure_ascii=False, default=dict)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Answer:
    """`value` is the JSON of an answer to a schema, else None. `cached`: from the ledger, not asked now."""

    text: str
    value: Any
    prompt_tokens: int
    completion_tokens: int
    finish: str
    cached: bool


@dataclass(frozen=True)
class Failure:
    """No answer, for a `reason` of one or two words (training/llm/reply.py, training/llm/asker.py) and a sentence.

    `text` is what the model said all the same: the beginning of what was truncated, what is no JSON.
    """

    reason: str
    detail: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
