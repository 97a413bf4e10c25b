"""One request that a server answered: what the ledger keeps of it."""

from __future__ import annotations

from dataclasses import dataclass

from training.llm.endpoint import Price


@dataclass(frozen=True)
class Call:
    """`reason` is empty for an answer that can be used, else a failure's kind, and `detail` its sentence.

    `estimated`: the server said nothing of usage, so the tokens are our own estimate.
    """

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    estimated: bool = False
    reason: str = ""
    detail: str = ""

    def dollars(self, price: Price) -> float:
        return price.dollars(self.prompt_tokens, self.completion_tokens)
