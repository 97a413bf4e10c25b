"""A ViT in bfloat16 on a processor: transformers' attention (torch's fused kernel) against ours, in turns.

    python -m benchmarks.vit_attention [--rounds 15] [--threads 2]

Random weights in two shapes: the ViT of benchmarks.vision_path, and four of the 39 layers of EVA ViT-g, which BLIP-2
and Ziya-Visual have. As the vision service does it: a batch is cut in slices, a thread each, and one picture is shared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel

from benchmarks import machine, quiet
from benchmarks.alternation import order
from ziya.model.attention import best_attention
from ziya.model.slices import Slices

SIZE, BATCHES = 224, (1, 8)
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """A ViT with patches of 14 x 14 pixels."""

    name: str
    width: int
    inner: int
    layers: int
    heads: int

    def model(self, attention: str) -> Blip2VisionModel:
        config = Blip2VisionConfig(
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            image_size=SIZE,
            patch_size=14,
            attn_implementation=attention,
        )
        torch.manual_seed(0)
        return Blip2VisionModel(config).to(torch.bfloat16).eval()


SHAPES = (Shape("384 x 6", 384, 1536, 6, 6), Shape("ViT-g, 4 layers", 1408, 6144, 4, 16))


class Encoder:
    """A model as the vision service runs it; `seconds` of each counted batch, by its size."""

    def __init__(self, shape: Shape, attention: str, slices: Slices) -> None:
        self._model, self._slices = shape.model(attention), slices
        self.seconds: dict[int, list[float]] = {batch: [] for batch in BATCHES}

    def run(self, pixels_B3SS: Array) -> None:
        began = time.perf_counter()
        self._slices.run(self._forward, pixels_B3SS)
        self.seconds[len(pixels_B3SS)].append(time.perf_counter() - began)

    @torch.inference_mode()
    def _forward(self, pixels_B3SS: Array) -> Array:
        pixels = torch.from_numpy(pixels_B3SS).to(torch.bfloat16)
        features: Array = self._model(pixel_values=pixels).last_hidden_state.float().numpy()
        return features

    def median(self, batch: int) -> float:
        return statistics.median(self.seconds[batch][1:])  # the first is slow


def rows(shape: Shape, rounds: int, slices: Slices) -> Sequence[list[str]]:
    encoders = [Encoder(shape, name, slices) for name in ("sdpa", best_attention(torch.bfloat16, "cpu"))]
    made = np.random.default_rng(0)
    for number in range(1 + rounds):
        for batch in BATCHES:
            pixels = made.normal(size=(batch, 3, SIZE, SIZE)).astype(np.float32)
            for place in order(len(encoders), number):
                encoders[place].run(pixels)
    found = []
    for batch in BATCHES:
        fused, ours = (encoder.median(batch) for encoder in encoders)
        found.append([shape.name, str(batch), f"{1000 * fused:.1f}", f"{1000 * ours:.1f}", f"{fused / ours:.2f}×"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to wait for a quiet machine")
    how = parser.parse_args()
    quiet.wait(how.patience, print)
    print(machine.describe(), flush=True)
    slices = Slices(how.threads)
    table = [row for shape in SHAPES for row in rows(shape, how.rounds, slices)]
    print(f"\nbfloat16, {how.threads} threads, medians of {how.rounds}\n")
    print(machine.table(["ViT", "pictures", "fused, ms", "ours, ms", "faster"], table))


if __name__ == "__main__":
    main()
