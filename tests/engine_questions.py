"""What both parts of the engines' conformance suite ask with: prompts, a checkpoint, and an engine's options."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np

from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Engine, Prompt
from tests.engines import QUERIES, VOCABULARY, WIDTH, Answer, ask
from tests.tiny import build_checkpoint

SLOTS, WAITING, CONTEXT = 4, 8, 512
KV_POSITIONS = 768
SHARED = 128  # positions of whole blocks, in every engine
PROMPT = Prompt(((10, 11, 12, 13),))
ENDLESS = Sampling(max_tokens=500, ignore_eos=True)
OPTIONS: dict[str, Any] = {"slots": SLOTS, "waiting": WAITING, "prefill_tokens": 24, "threads": 1}
Start = Callable[..., AbstractAsyncContextManager[Engine]]


def conforming_checkpoint(folder: Path) -> Path:
    """Heads of 32 numbers: vLLM's attention on a CPU has none of 16."""
    return build_checkpoint(folder, heads=2, kv_heads=1, seed=3)


def text(seed: int, length: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(3, VOCABULARY) for _ in range(length))


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((QUERIES, WIDTH)).astype(np.float16)


def greedy(tokens: int) -> Sampling:
    return Sampling(max_tokens=tokens, ignore_eos=True)


async def drained(stream: Any) -> None:
    async for _ in stream:
        pass


async def in_turns(engine: Engine, prompt: Prompt, samplings: Sequence[Sampling]) -> list[Answer]:
    """All answers, with never more requests at once than the engine takes."""
    room = asyncio.Semaphore(SLOTS + WAITING)

    async def one(sampling: Sampling) -> Answer:
        async with room:
            return await ask(engine, prompt, sampling)

    return list(await asyncio.gather(*map(one, samplings)))
