"""The one seam between a request and whatever engine runs the LLaMA: nouns, and the `Engine` protocol.

`submit` gives a stream at once; text comes out of it as it is made, the last delta says why it ended and what
it cost. Nothing here knows torch, Triton or a particular engine, so that another one can take its place.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from services.llama.engine.sampling import Sampling


@dataclass(frozen=True)
class Prompt:
    """`pieces[i]` (token ids), then `visuals[i]` (float16 [queries, Q-Former width]), then `pieces[i + 1]` …

    Keys and values are reused among prompts that begin alike and have the same `salt`. `adapter` names a loaded
    LoRA adapter, "" none.
    """

    pieces: tuple[tuple[int, ...], ...]
    visuals: tuple[npt.NDArray[np.float16], ...] = ()
    salt: bytes = b""
    adapter: str = ""

    @property
    def text_tokens(self) -> int:
        return sum(map(len, self.pieces))

    @property
    def image_tokens(self) -> int:
        return sum(len(visual) for visual in self.visuals)

    @property
    def positions(self) -> int:
        return self.text_tokens + self.image_tokens


@dataclass(frozen=True)
class Usage:
    """What a finished request took. Seconds: waiting to run, until the first token, after it.

    `cached_tokens` of the `prompt_tokens` were not computed: their keys and values were there.
    """

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    cached_tokens: int = 0


@dataclass(frozen=True)
class TokenLogprob:
    """Natural logarithm of a chosen token's probability, and (id, logarithm) of the likeliest ones, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """A piece of an answer: whole characters, the ids behind them; the last one has `finish_reason` and `usage`.

    `logprobs` has one for each id where the request asked for them.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: str = ""
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()

    def merge(self, later: Delta) -> Delta:
        return Delta(
            text=self.text + later.text,
            ids=self.ids + later.ids,
            finish_reason=later.finish_reason,
            usage=later.usage,
            logprobs=self.logprobs + later.logprobs,
        )


@dataclass(frozen=True)
class Stats:
    """A moment of the engine: the first five are now, the rest counts since the start.

    `slots` is how many may run at once; of the KV cache's `blocks`, running requests hold `blocks_used`.
    `prompt_tokens` were asked for, `cached_tokens` of them reused. `steps` took `step_seconds` altogether.
    Of `drafted` tokens that were guessed ahead, `accepted` were right. `saved` of the cancelled and expired requests
    had not begun to be computed.
    """

    running: int = 0
    waiting: int = 0
    slots: int = 0
    blocks: int = 0
    blocks_used: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    expired: int = 0
    rejected: int = 0
    failed: int = 0
    cached_tokens: int = 0
    preempted: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    drafted: int = 0
    accepted: int = 0
    saved: int = 0


class Stream(Protocol):
    """An answer being made. Iterating raises the ZiyaError that ended it; deltas that wait are given as one."""

    def __aiter__(self) -> AsyncIterator[Delta]: ...

    async def __anext__(self) -> Delta: ...

    def cancel(self) -> None:
        """The answer is no longer wanted: its memory is free at the next step. Harmless when it has ended."""


class Engine(Protocol):
    """What serves. `submit` and the streams belong to an event loop; the work is done on the engine's own thread."""

    @property
    def context(self) -> int:
        """Positions that prompt and answer may take together."""

    async def prepare(self, sampling: Sampling) -> None:
        """Does what `submit` needs and takes long, off the loop: compiling a schema. Raises InvalidRequest."""

    def submit(self, prompt: Prompt, sampling: Sampling, deadline: float | None = None) -> Stream:
        """Raises InvalidRequest, PromptTooLong, Overloaded or Unavailable at once; `deadline` is unix seconds."""

    def check_length(self, text_tokens: int, image_tokens: int) -> None:
        """Raises PromptTooLong, as `submit` would, while the images are still being waited for."""

    def stats(self) -> Stats: ...

    def first_token_seconds(self) -> list[float]:
        """Times from submission to first token of the requests since this was last asked."""

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Takes up a LoRA adapter in peft's layout while serving. Raises InvalidRequest for what cannot be used."""

    async def unload_adapter(self, name: str) -> None:
        """Refuses new requests for it, waits for those that use it, forgets it. InvalidRequest if it is unknown."""

    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that a prompt may ask for."""

    async def close(self, drain_seconds: float = 0.0) -> None:
        """Takes nothing new, lets the running finish for so long, cancels the rest, ends the thread."""
