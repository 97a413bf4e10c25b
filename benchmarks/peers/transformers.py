"""transformers: `generate` with all requests in one static batch, or its continuous batching (token ids only)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Blip2ForConditionalGeneration,
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from benchmarks.peers import workload
from benchmarks.peers.answering import Engine, Round, Setting, answer
from benchmarks.peers.numbers import quicker_numbers
from benchmarks.peers.workload import NEW, PROMPT, TEXT, VISUAL

PIXEL_MEAN, PIXEL_DEVIATION = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)  # CLIP's, as BLIP-2 takes them
PATIENCE = 200.0


class FirstScores(LogitsProcessor):  # type: ignore[misc]
    """Changes nothing; notes when scores first came, which is as soon as the first token is known."""

    at = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.at = self.at or time.perf_counter()
        return scores


class Static:
    """`inputs` makes what `generate` takes for the requests; the answer comes for all of them together."""

    def __init__(self, model: Any, inputs: Callable[[range], dict[str, torch.Tensor]]) -> None:
        self._model, self._inputs = model, inputs

    def round(self, requests: range) -> Round:
        inputs, first = self._inputs(requests), FirstScores()
        began = time.perf_counter()
        with torch.inference_mode():
            ids = self._model.generate(
                **inputs,
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
                logits_processor=LogitsProcessorList([first]),
            )
        seconds = time.perf_counter() - began
        prompt = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        return Round(seconds, [first.at - began] * len(requests), len(ids) * (ids.shape[1] - prompt))

    def close(self) -> None:
        pass


class Continuous:
    """A thread of the library's own serves; results are taken as they come."""

    def __init__(self, model: Any) -> None:
        # No token has the number -1: nothing ends early.
        how = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
        limits = ContinuousBatchingConfig(block_size=32, num_blocks=256, max_batch_tokens=2048)
        self._manager = model.init_continuous_batching(generation_config=how, continuous_batching_config=limits)
        self._manager.start()

    def round(self, requests: range) -> Round:
        prompts = [workload.token_ids(request, PROMPT) for request in requests]
        firsts: dict[str, float] = {}
        done = tokens = 0
        began = time.perf_counter()
        for prompt in prompts:
            self._manager.add_request(prompt, max_new_tokens=NEW, streaming=True)
        while done < len(prompts):
            result = self._manager.get_result(timeout=PATIENCE)
            if result is None:
                raise RuntimeError(f"transformers gave nothing for {PATIENCE} s")
            firsts.setdefault(result.request_id, time.perf_counter() - began)
            if result.is_finished():
                done, tokens = done + 1, tokens + len(result.generated_tokens)
        return Round(time.perf_counter() - began, list(firsts.values()), tokens)

    def close(self) -> None:
        self._manager.stop(block=True)


def load(setting: Setting) -> Engine:
    """What to load is the option `kind`: "static", "continuous" or "blip2"."""
    torch.set_num_threads(setting.threads)
    kind, numbers = setting.options["kind"], quicker_numbers()
    if kind == "blip2":
        whole = Blip2ForConditionalGeneration.from_pretrained(setting.models / "blip2", dtype=numbers).eval()
        return Static(whole, lambda requests: _pictures(requests, whole.config.image_token_index, numbers))
    model = AutoModelForCausalLM.from_pretrained(setting.models / "llama", dtype=numbers).eval()
    if kind == "continuous":
        return Continuous(model)
    return Static(model, lambda requests: _embeddings(requests, model.config.hidden_size, numbers))


def _embeddings(requests: range, width: int, numbers: torch.dtype) -> dict[str, torch.Tensor]:
    rows = np.stack([workload.embeddings(request, width) for request in requests])
    return {
        "inputs_embeds": torch.from_numpy(rows).to(numbers),
        "attention_mask": torch.ones(len(requests), PROMPT, dtype=torch.long),
    }


def _pictures(requests: range, image_token: int, numbers: torch.dtype) -> dict[str, torch.Tensor]:
    """Pixels are made before the clock starts: this peer decodes and scales nothing."""
    ids = torch.tensor([[image_token] * VISUAL + workload.token_ids(request, TEXT) for request in requests])
    pixels = np.stack([workload.picture(request) for request in requests]).astype(np.float32) / 255.0
    normal_BSS3 = torch.from_numpy((pixels - PIXEL_MEAN) / PIXEL_DEVIATION)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": normal_BSS3.permute(0, 3, 1, 2).to(numbers),
    }


if __name__ == "__main__":
    answer(load)
