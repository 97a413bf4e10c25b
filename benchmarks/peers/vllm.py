"""vLLM's AsyncLLM on a CPU: the LLaMA with prompt embeddings, or the whole BLIP-2 with pictures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import torch
from PIL import Image
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

from benchmarks.peers import workload
from benchmarks.peers.answering import Round, Setting, answer
from benchmarks.peers.numbers import quicker_numbers
from benchmarks.peers.workload import NEW, TEXT

SAMPLING = SamplingParams(max_tokens=NEW, min_tokens=NEW, temperature=0.0, ignore_eos=True)


class Vllm:
    """The option `kind` is "llama" or "blip2". Every prompt is new, so its caches are off: they would only cost."""

    def __init__(self, setting: Setting) -> None:
        self._kind = setting.options["kind"]
        self._numbers = quicker_numbers()
        own: dict[str, Any] = {"enable_prompt_embeds": True}
        if self._kind == "blip2":
            own = {"limit_mm_per_prompt": {"image": 1}, "mm_processor_cache_gb": 0}
        arguments = AsyncEngineArgs(
            model=str(setting.models / self._kind),
            dtype=str(self._numbers).removeprefix("torch."),
            max_model_len=256,
            max_num_seqs=max(64, setting.most),
            max_num_batched_tokens=4096,
            enable_prefix_caching=False,
            **own,
        )
        self._runner, self._names = asyncio.Runner(), count()
        self._engine = self._runner.run(self._load(arguments))
        self._width = self._engine.model_config.get_hidden_size()

    def round(self, requests: range) -> Round:
        return self._runner.run(self._round([self._prompt(request) for request in requests]))

    def close(self) -> None:
        self._engine.shutdown()
        self._runner.close()

    async def _load(self, arguments: AsyncEngineArgs) -> AsyncLLM:
        return AsyncLLM.from_engine_args(arguments)  # it wants a running loop

    def _prompt(self, request: int) -> Mapping[str, Any]:
        if self._kind == "blip2":
            image = Image.fromarray(workload.picture(request))
            return {"prompt_token_ids": workload.token_ids(request, TEXT), "multi_modal_data": {"image": image}}
        return {"prompt_embeds": torch.from_numpy(workload.embeddings(request, self._width)).to(self._numbers)}

    async def _round(self, prompts: Sequence[Mapping[str, Any]]) -> Round:
        began = time.perf_counter()
        answers = await asyncio.gather(*(self._answer(prompt, began) for prompt in prompts))
        seconds = time.perf_counter() - began
        return Round(seconds, [first for first, _ in answers], sum(tokens for _, tokens in answers))

    async def _answer(self, prompt: Mapping[str, Any], began: float) -> tuple[float, int]:
        first, tokens = 0.0, 0
        async for output in self._engine.generate(prompt, SAMPLING, request_id=str(next(self._names))):
            first = first or time.perf_counter() - began
            tokens = len(output.outputs[0].token_ids)
        return first, tokens


if __name__ == "__main__":
    answer(Vllm)
