"""Two ways to ask a question about a numbered picture: the engine in this process, and a whole stack over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch

from benchmarks.peers import workload
from benchmarks.questions import Questions
from benchmarks.stack_rounds import png
from cli.load import request as load
from cli.load.openai_caller import OpenAICaller
from services.llama.engine.engine import EngineOptions, NativeEngine
from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Prompt
from ziya.model.llama import load_llama
from ziya.prompt import Turn

FEW = 4  # tokens of an answer of which the first is what counts
WORDS = 200  # that an answer through the stack is made of


@dataclass(frozen=True)
class Told:
    """One answer: seconds to its first token, its tokens, those of its prompt, and how many of these were reused."""

    first: float
    tokens: int
    prompt: int
    cached: int
    history: tuple[Any, ...] = ()


class Way(Protocol):
    async def ask(
        self, client: int, picture: int, question: int, words: int, new: int, *, history: tuple[Any, ...] = ()
    ) -> Told:
        """The question of this number, `words` tokens long, of which `new` are answered, after a told `history`."""

    async def close(self) -> None: ...


async def follow_up(way: Way, picture: int, lengths: Sequence[int], numbers: Iterator[int]) -> dict[str, float]:
    """Seconds to the first token: of a first question about the picture, and of those that come after it."""
    first = await way.ask(0, picture, next(numbers), max(lengths), workload.NEW)
    seconds = {"the first question": first.first}
    for words in lengths:
        other = await way.ask(0, picture, next(numbers), words, FEW)
        seconds[f"another user's about the same picture, {words} tokens of text"] = other.first
        turn = await way.ask(0, picture, next(numbers), words, FEW, history=first.history)
        seconds[f"the chat's next turn, {words} tokens of text"] = turn.first
    return seconds


class EngineWay:
    """Visual tokens are made up, the question is its ids; the history is all ids so far."""

    def __init__(self, engine: NativeEngine, width: int) -> None:
        self._engine, self._width = engine, width

    @classmethod
    def load(cls, checkpoint: Path, threads: int, options: Mapping[str, Any]) -> Self:
        weights = load_llama(checkpoint, dtype=torch.bfloat16)
        width = weights.projection_weight.shape[1]
        return cls(NativeEngine(weights, EngineOptions(**{"threads": threads, **options})), width)

    async def ask(
        self, client: int, picture: int, question: int, words: int, new: int, *, history: tuple[Any, ...] = ()
    ) -> Told:
        visual = np.random.default_rng(picture).standard_normal((workload.VISUAL, self._width)).astype(np.float16)
        ids = (*history, *workload.token_ids(question, words))
        sampling = Sampling(temperature=0.0, max_tokens=new, ignore_eos=True)
        answer: list[int] = []
        first, began = 0.0, time.perf_counter()
        async for delta in self._engine.submit(Prompt(((), ids), (visual,)), sampling):
            first = first or time.perf_counter() - began
            answer.extend(delta.ids)
        assert delta.usage is not None, "the last delta has it"
        return Told(first, len(answer), delta.usage.prompt_tokens, delta.usage.cached_tokens, (*ids, *answer))

    async def close(self) -> None:
        await self._engine.close()


class StackWay:
    """Pictures are PNGs, questions are words; the history is the turns so far.

    Answers are kept to words of one token: what a model with random weights says of its own accord is no text, and
    would be read again, in the chat's next turn, as two or three times as many tokens that nobody has computed before.
    """

    def __init__(self, questions: Questions, callers: Sequence[OpenAICaller]) -> None:
        self._questions, self._callers = questions, callers

    @classmethod
    def connect(cls, checkpoint: Path, address: str, clients: int) -> Self:
        questions = Questions(checkpoint)
        words = {str(word): 100 for word in questions.words(WORDS)}
        options = load.Options(temperature=0.0, ignore_eos=True, extra={"logit_bias": words})
        base = f"http://{address}/v1"
        return cls(questions, [OpenAICaller(base, "ziya-visual", options, time.perf_counter) for _ in range(clients)])

    async def ask(
        self, client: int, picture: int, question: int, words: int, new: int, *, history: tuple[Any, ...] = ()
    ) -> Told:
        images = () if history else (load.Picture(png(picture), "png"),)
        turns = (*history, Turn("user", self._questions.ask(question, words), images))
        request = load.Request(0, turns, new)
        answer = load.Answer(request, time.perf_counter())
        await self._callers[client].ask(request, answer)
        usage = answer.usage
        assert usage is not None, "this gateway always says"
        told = (*turns, Turn("assistant", answer.text))
        return Told(answer.ttft or 0.0, answer.tokens, usage.prompt, usage.cached, told)

    async def close(self) -> None:
        for caller in self._callers:
            await caller.close()
