"""A native engine on a tiny checkpoint, questions to ask it, and transformers' answers to the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from services.llama.engine import kernels
from services.llama.engine.batch import Model
from services.llama.engine.engine import EngineOptions, NativeEngine
from services.llama.engine.models import choose_model
from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Prompt, Usage
from ziya.model.llama import LlamaWeights, load_llama

QUERIES, WIDTH, VOCABULARY = 4, 32, 300
DEFAULTS: dict[str, Any] = {"threads": 1}
BOTH = pytest.mark.parametrize(
    "kernels",
    [
        "torch",
        pytest.param("compiled", marks=pytest.mark.skipif(kernels.library() is None, reason="not built, or no AVX2")),
    ],
)


@dataclass(frozen=True)
class Answer:
    ids: list[int]
    text: str
    finish_reason: str
    usage: Usage


@asynccontextmanager
async def engine_on(
    checkpoint: Path,
    dtype: torch.dtype = torch.float32,
    eos: int | None = None,
    attention: float = 1.0,
    choose: Callable[..., tuple[Model, int]] = choose_model,
    **options: Any,
) -> AsyncIterator[NativeEngine]:
    """With `eos` another token ends answers; `attention` scales what the model takes from other positions."""
    weights = load_llama(checkpoint, dtype=dtype)
    for name, tensor in weights.tensors.items():
        if "o_proj" in name:
            tensor.mul_(attention)
    if eos is not None:
        weights = replace(weights, shape=replace(weights.shape, eos_ids=(eos,)))
    engine = NativeEngine(weights, EngineOptions(**DEFAULTS | options), choose)
    try:
        yield engine
    finally:
        await engine.close()


async def ask(engine: NativeEngine, prompt: Prompt, sampling: Sampling, deadline: float | None = None) -> Answer:
    ids, text = list[int](), ""
    async for delta in engine.submit(prompt, sampling, deadline):
        ids += delta.ids
        text += delta.text
    assert delta.usage is not None
    return Answer(ids, text, delta.finish_reason, delta.usage)


async def settled(engine: NativeEngine) -> None:
    """Until the engine holds nothing; the test's own timeout ends a wait for something that never comes."""
    while (stats := engine.stats()).running or stats.waiting:
        await asyncio.sleep(0.005)


def random_prompt(rng: random.Random, images: int | None = None, longest: int = 40) -> Prompt:
    """Token ids and visual tokens that mean nothing, with 0 to 2 images."""
    images = rng.randint(0, 2) if images is None else images
    pieces = [tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.randint(1, longest))) for _ in range(images + 1)]
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    visuals = numbers.standard_normal((images, QUERIES, WIDTH)).astype(np.float16)
    return Prompt(tuple(pieces), tuple(visuals))


@cache
def _reference(checkpoint: Path) -> tuple[LlamaWeights, LlamaForCausalLM]:
    return load_llama(checkpoint), LlamaForCausalLM.from_pretrained(checkpoint / "llama", dtype=torch.float32).eval()


def reference(
    checkpoint: Path, prompt: Prompt, max_tokens: int, *, other: LlamaForCausalLM | None = None, **options: Any
) -> list[int]:
    """What transformers' generate answers greedily, eos included; with the checkpoint's weights, or `other` ones."""
    weights, model = _reference(checkpoint)
    model = other or model
    options |= {"do_sample": False, "max_new_tokens": max_tokens}
    if not prompt.visuals:
        ids = torch.tensor([prompt.pieces[0]])
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        return list(output[0, ids.shape[1] :].tolist())
    parts = []
    for number, piece in enumerate(prompt.pieces):
        if number:
            visual = torch.from_numpy(prompt.visuals[number - 1]).float()
            parts.append(visual @ weights.projection_weight.T + weights.projection_bias)
        parts.append(model.get_input_embeddings()(torch.tensor(piece, dtype=torch.long)))
    embeddings = torch.cat(parts)[None].detach()
    mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
    return list(model.generate(inputs_embeds=embeddings, attention_mask=mask, **options)[0].tolist())
