"""One request's sampling state: its generator, the tokens that its penalties count, where its JSON text is.

It outlives steps, and a preemption: whatever a request has said stays counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from services.llama.engine.guided import Guide
from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import TokenLogprob
from services.llama.engine.tally import Tally


class Chosen(NamedTuple):
    """A chosen token, with its logarithms where the request asked for them."""

    token: int
    logprob: TokenLogprob | None = None


class Choice:
    """Of a request with `sampling`; `guide` follows its JSON schema, None without one.

    `plain` requests take the likeliest token and ask for nothing else. `memoryless` ones choose by the model alone,
    whatever was said before, so that several positions may be chosen in one step.
    """

    def __init__(self, sampling: Sampling, guide: Guide | None = None) -> None:
        self.sampling = sampling
        self.guide = guide
        self.generator = Random(sampling.seed)
        self.tally = Tally()
        self.repetitive = sampling.repetition_penalty != 1.0
        self.additive = sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0
        self.memoryless = not (self.repetitive or self.additive or guide)
        self.plain = sampling.greedy and self.memoryless and not sampling.logit_bias and sampling.logprobs is None

    @property
    def error(self) -> str:
        """Why it cannot go on, "" while it can: a schema may become too costly to follow."""
        return self.guide.error if self.guide else ""

    def saw(self, ids: Sequence[int]) -> None:
        """Text tokens of the prompt."""
        if self.repetitive:
            self.tally.saw(ids)

    def accept(self, token: int) -> None:
        """The token that the answer goes on with."""
        if self.repetitive or self.additive:
            self.tally.count(token)
        if self.guide:
            self.guide.accept(token)
