"""Image files in, ViT features out: bytes and numpy, on the caller's thread. Knows no gRPC, no Redis.

Two kinds of work for two kinds of thread: `prepare` (decode, resize, normalise: one image, plain CPU)
belongs in a small pool, `encode` (the ViT: one batch) on the batcher's own thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ziya.images import ImageLimits, decode
from ziya.model.slices import Slices
from ziya.model.vision import VisionEncoder


class Encoder:
    """The ViT of one checkpoint with its preprocessing."""

    def __init__(self, model: VisionEncoder, limits: ImageLimits, slices: Slices) -> None:
        self._model = model
        self._limits = limits
        self._slices = slices

    @classmethod
    def load(cls, folder: Path, *, limits: ImageLimits, threads: int, dtype: str, device: str) -> Self:
        """Loads the weights of the checkpoint in `folder`. Raises CheckpointError naming what is wrong with it."""
        slices = Slices(threads, device)
        return cls(VisionEncoder.load(folder, dtype=getattr(torch, dtype), device=device), limits, slices)

    def prepare(self, image: bytes) -> NDArray[np.float32]:
        """One image file -> float32 [3, S, S]. Raises InvalidImage."""
        return self._model.preprocessing(decode(image, self._limits))

    def blank(self) -> NDArray[np.float32]:
        """Pixels of an empty picture, to warm the model up with."""
        return self._model.preprocessing(np.zeros((8, 8, 3), np.uint8))

    def encode(self, pixels: Sequence[NDArray[np.float32]]) -> list[NDArray[Any]]:
        """Images of [3, S, S] -> float16 features of [patches + 1, vision width] each."""
        return self._slices.run(self._model, np.stack(pixels))
