"""What every engine is asked: requests by number, so that no two are alike and all engines can make the same ones.

A request is 64 prompt positions and 64 greedy new tokens, the end token ignored. Engines that take embeddings get 32
visual and 32 text ones, the others 64 token ids: that costs the same. Nothing can be reused between requests.
"""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt

VISUAL, TEXT, NEW = 32, 32, 64
PROMPT = VISUAL + TEXT
PIXELS = 224


def token_ids(request: int, count: int = TEXT) -> list[int]:
    """Ordinary tokens of a vocabulary of 32000: neither the special ones at its start nor the fillers at its end."""
    draw = random.Random(request)
    return [draw.randrange(300, 30000) for _ in range(count)]


def embeddings(request: int, width: int, count: int = PROMPT) -> npt.NDArray[np.float32]:
    """[count, width], as large as the model's own (it is initialised with a deviation of 0.02)."""
    draw = np.random.default_rng(request)
    return (0.02 * draw.standard_normal((count, width))).astype(np.float32)


def picture(request: int) -> npt.NDArray[np.uint8]:
    """RGB [224, 224, 3]: a coarse pattern, so that a PNG of it is as quick to decode as of a drawing."""
    draw = np.random.default_rng(request)
    coarse = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((PIXELS // 8, PIXELS // 8, 1), dtype=np.uint8))
