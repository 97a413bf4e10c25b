"""What fewer bits cost in answers: ziya-tiny's greedy answers with bfloat16, int8 and int4 weights against float32's.

    python -m benchmarks.quantised

Every example picture, two questions in each language. The same visual tokens go to all four engines; told are how many
answers are the same to the last character, and how many tokens they agree in before the first difference.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.direct import Direct
from services.llama.engine.engine import EngineOptions, NativeEngine
from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Prompt
from ziya.model.llama import load_llama

CHECKPOINT = Path("checkpoints/ziya-tiny")
QUESTIONS = ("这是什么？", "请描述这张图片。", "What is this?", "Describe the picture.")
VARIANTS = (("float32", "none"), ("bfloat16", "none"), ("bfloat16", "int8"), ("bfloat16", "int4"))


async def answers(engine: NativeEngine, prompts: list[Prompt]) -> list[list[int]]:
    async def one(prompt: Prompt) -> list[int]:
        ids = list[int]()
        async for delta in engine.submit(prompt, Sampling(max_tokens=64)):
            ids += delta.ids
        return ids

    return await asyncio.gather(*map(one, prompts))


def agreed(one: list[int], other: list[int]) -> int:
    """Tokens before the first difference."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


async def measure() -> str:
    direct = Direct.load(CHECKPOINT, EngineOptions())
    images = [path.read_bytes() for path in sorted((CHECKPOINT / "examples").glob("*.webp"))]
    with torch.inference_mode():
        prompts = [direct.prompt(q, (visual,)) for visual in map(direct.see, images) for q in QUESTIONS]
    await direct.engine.close()
    given = []
    for dtype, quantise in VARIANTS:
        weights = load_llama(CHECKPOINT, dtype=getattr(torch, dtype))
        engine = NativeEngine(weights, EngineOptions(kernels="compiled", quantise=quantise, waiting=len(prompts)))
        given.append(await answers(engine, prompts))
        await engine.close()
    rows = []
    for (dtype, quantise), those in zip(VARIANTS, given, strict=True):
        same = sum(a == b for a, b in zip(those, given[0], strict=True))
        shared = sum(agreed(a, b) for a, b in zip(those, given[0], strict=True)) / sum(map(len, given[0]))
        rows.append([dtype if quantise == "none" else quantise, f"{same} of {len(prompts)}", f"{shared:.1%}"])
    return machine.table(["weights", "answers the same", "tokens before the first difference"], rows)


if __name__ == "__main__":
    print(machine.describe())
    print(f"\n{json.dumps(QUESTIONS, ensure_ascii=False)}\n\n{asyncio.run(measure())}")
