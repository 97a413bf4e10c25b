"""The native engine in this process, asked as Triton's model asks it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.peers import workload
from benchmarks.peers.answering import Round, Setting, answer
from services.llama.engine.engine import EngineOptions, NativeEngine
from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Prompt, Usage
from ziya.model.llama import load_llama

SAMPLING = Sampling(temperature=0.0, max_tokens=workload.NEW, ignore_eos=True)


class Native:
    """Prompts are text alone if the option `kind` is "text"; the others are EngineOptions.

    A round raises RuntimeError if it was helped by something that the peers do without.
    """

    def __init__(self, setting: Setting) -> None:
        weights = load_llama(setting.models / "checkpoint", dtype=torch.bfloat16)
        self._visual_width = weights.projection_weight.shape[1]
        own = dict(setting.options)
        self._text = own.pop("kind", "visual") == "text"
        options = EngineOptions(**{"slots": setting.most, "threads": setting.threads, **own})
        self._engine, self._runner = NativeEngine(weights, options), asyncio.Runner()

    def round(self, requests: range) -> Round:
        return self._runner.run(self._round([self._prompt(request) for request in requests]))

    def close(self) -> None:
        self._runner.run(self._engine.close())
        self._runner.close()

    def _prompt(self, request: int) -> Prompt:
        if self._text:
            return Prompt((tuple(workload.token_ids(request, workload.PROMPT)),))
        visual = np.random.default_rng(request).standard_normal((workload.VISUAL, self._visual_width))
        return Prompt(((), tuple(workload.token_ids(request))), (visual.astype(np.float16),))

    async def _round(self, prompts: Sequence[Prompt]) -> Round:
        began = time.perf_counter()
        answers = await asyncio.gather(*(self._answer(prompt, began) for prompt in prompts))
        seconds = time.perf_counter() - began
        reused = sum(usage.cached_tokens for _, usage in answers)
        if reused or self._engine.stats().drafted:
            raise RuntimeError(f"{reused} prompt tokens were reused and {self._engine.stats().drafted} tokens guessed")
        return Round(seconds, [first for first, _ in answers], sum(usage.completion_tokens for _, usage in answers))

    async def _answer(self, prompt: Prompt, began: float) -> tuple[float, Usage]:
        first, usage = 0.0, None
        async for delta in self._engine.submit(prompt, SAMPLING):
            first, usage = first or time.perf_counter() - began, delta.usage
        assert usage is not None, "the last delta has it"
        return first, usage


if __name__ == "__main__":
    answer(Native)
