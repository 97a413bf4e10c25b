"""One request inside the engine: its prompt, how far it is computed, what it has said, and when.

A sequence waits, is admitted, has its prompt computed (in one or more chunks), then decodes a token a step until
something ends it. When memory runs out it may lose its place: it waits again, with all it has said, and has prompt
and answer so far computed once more. It knows nothing of threads, batches or tensors of others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from services.llama.engine.answer import Answer
from services.llama.engine.blocks import blocks_for
from services.llama.engine.choice import Choice
from services.llama.engine.detokenizer import TokenBytes
from services.llama.engine.guided import Guide
from services.llama.engine.lookup import Lookup
from services.llama.engine.lora import LoraAdapter
from services.llama.engine.prefix import Prefix
from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Delta, Prompt, TokenLogprob, Usage


@dataclass(eq=False)
class Sequence:
    """State of a request. `computed` counts positions whose keys and values are in its `blocks`, in order.

    `cached` of the prompt's positions were reused when it was first admitted. `drafts` are guesses at the next
    tokens, to be verified in the step that is under way.
    """

    prompt: Prompt
    sampling: Sampling
    deadline: float
    table: TokenBytes
    context: int
    submitted: float
    eos: frozenset[int] = frozenset()
    adapter: LoraAdapter | None = None
    guide: Guide | None = None
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    cached: int = 0
    drafts: list[int] = field(default_factory=list)
    admitted: float = math.nan
    first_token: float = math.nan
    cancelled: bool = False
    delivered: bool = False

    def __post_init__(self) -> None:
        self.length = self.prompt.positions
        self.prefix = Prefix(self.prompt, self.adapter.lineage if self.adapter else b"")
        self.lookup = Lookup(self.prefix.tokens)
        self.choice = Choice(self.sampling, self.guide)
        for piece in self.prompt.pieces:
            self.choice.saw(piece)
        self._limit = min(self.sampling.max_tokens, self.context - self.length)
        self._answer = Answer(self.table, self.sampling, self.eos, self._limit)
        self.ids = self._answer.ids

    @property
    def finish_reason(self) -> str:
        """Empty until the answer has ended."""
        return self._answer.finish_reason

    @property
    def known(self) -> int:
        """Positions whose tokens are known: of the prompt, and of what was generated."""
        return self.length + len(self.ids)

    @property
    def pending(self) -> int:
        """Known positions that are still to be computed: one while it decodes, more while a prompt is computed."""
        return self.length + len(self.ids) - self.computed

    @property
    def guessable(self) -> bool:
        """Whether the likeliest token is always the next one: only then can guesses be verified."""
        return self.sampling.greedy and self.choice.memoryless

    @property
    def left(self) -> int:
        """Tokens that it may still generate."""
        return self._limit - len(self.ids)

    @property
    def most_blocks(self) -> int:
        """Blocks that it can need at its longest; the last token's keys and values are never computed."""
        return blocks_for(self.length + self._limit - 1)

    def visual_rows(self, start: int, count: int) -> list[npt.NDArray[np.float16]]:
        """The visual tokens among the positions from `start` on, in order."""
        found, stop, begin = [], start + count, 0
        for piece, visual in zip(self.prompt.pieces, self.prompt.visuals, strict=False):
            begin += len(piece)
            rows = visual[max(0, start - begin) : max(0, stop - begin)]
            if len(rows):
                found.append(rows)
            begin += len(visual)
        return found

    def cancel(self) -> None:
        """From any thread; seen at the next step."""
        self.cancelled = True

    def append(self, token: int, logprob: TokenLogprob | None, now: float) -> None:
        """Takes the next token, which may end the answer."""
        if not self.ids:
            self.first_token = now
        self._answer.append(token, logprob)
        self.prefix.extend((token,))
        self.choice.accept(token)

    def take(self, now: float) -> Delta | None:
        """What is new since the last time; None while that is nothing, as within a character."""
        delta = self._answer.take(self._usage(now) if self.finish_reason else None)
        self.delivered = self.delivered or delta is not None
        return delta

    def _usage(self, now: float) -> Usage:
        return Usage(
            prompt_tokens=self.prompt.positions,
            image_tokens=self.prompt.image_tokens,
            completion_tokens=len(self.ids),
            queue_seconds=self.admitted - self.submitted,
            prefill_seconds=self.first_token - self.admitted,
            decode_seconds=now - self.first_token,
            cached_tokens=self.cached,
        )
