"""The same modules as the stack's, called directly in one process: the floor that the stack is held against.

Nothing is left out that a stage must do (decoding the picture included), and nothing is added: no gRPC, no
Redis, no Triton, no HTTP, no batching across requests before the engine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from benchmarks.callers import Ask, Timing
from services.llama.engine.engine import EngineOptions, NativeEngine
from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Prompt
from ziya.checkpoint import read_config
from ziya.images import ImageLimits, decode
from ziya.model.llama import load_llama
from ziya.model.preprocessing import Preprocessing
from ziya.model.qformer import QFormer
from ziya.model.vision import VisionEncoder
from ziya.prompt import Turn, render, tokenize

Tokens = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Direct:
    """ViT, Q-Former and engine of one checkpoint in this process."""

    checkpoint: Path
    vision: VisionEncoder
    preprocessing: Preprocessing
    qformer: QFormer
    engine: NativeEngine
    tokenizer: Tokenizer

    @classmethod
    def load(cls, checkpoint: Path, options: EngineOptions, dtype: torch.dtype = torch.float32) -> Direct:
        weights = load_llama(checkpoint, dtype=dtype)
        tokenizer = Tokenizer.from_file(str(weights.tokenizer))
        vision = VisionEncoder.load(checkpoint)
        return cls(
            checkpoint=checkpoint,
            vision=vision,
            preprocessing=vision.preprocessing,
            qformer=QFormer.load(checkpoint),
            engine=NativeEngine(weights, options),
            tokenizer=tokenizer,
        )

    def see(self, image: bytes) -> Tokens:
        """Visual tokens [queries, Q-Former width] of an encoded picture."""
        pixels_B3SS = self.preprocessing(decode(image, ImageLimits()))[None]
        tokens_QD: Tokens = self.qformer(self.vision(pixels_B3SS), None)[0]
        return tokens_QD

    def prompt(self, question: str, visuals: tuple[Tokens, ...]) -> Prompt:
        rendered = render([Turn("user", question, visuals)], read_config(self.checkpoint).prompt)
        pieces = tuple(tuple(piece) for piece in tokenize(self.tokenizer, rendered.texts))
        return Prompt(pieces, visuals)

    async def ask(self, ask: Ask, visual: Tokens | None = None) -> Timing:
        """One answer. `visual` stands for a picture whose tokens are cached; else `ask.image` is encoded first."""
        timing, started = Timing(), time.perf_counter()
        if visual is None and ask.image:
            visual = self.see(ask.image)
        prompt = self.prompt(ask.question, () if visual is None else (visual,))
        sampling = Sampling(temperature=0.0, max_tokens=ask.max_tokens, ignore_eos=ask.ignore_eos)
        async for delta in self.engine.submit(prompt, sampling):
            if delta.text:
                timing.first_token = timing.first_token or time.perf_counter() - started
                timing.text += delta.text
            if delta.usage is not None:
                timing.tokens = delta.usage.completion_tokens
        timing.total = time.perf_counter() - started
        return timing
