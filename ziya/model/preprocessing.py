"""From a decoded picture to the pixels a ViT reads: one bicubic square, scaled and normalised. No torch.

The numbers come from `vision/preprocessor_config.json`, a file that transformers' BlipImageProcessor reads
as it is, and the arithmetic is that processor's on its PIL backend, bit for bit. The picture is squeezed to the square,
not cropped: that is how BLIP-2 and Ziya were trained.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ziya.checkpoint import CheckpointError

FILE_NAME = "preprocessor_config.json"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocessing:
    """`size` is the side of the square in pixels; mean and std are per channel, on values between 0 and 1."""

    size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    rescale: float = 1 / 255

    def __call__(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [height, width, 3] -> float32 [3, size, size]."""
        if image_HW3.dtype != np.uint8 or image_HW3.ndim != 3 or image_HW3.shape[2] != 3:
            raise ValueError(f"an image must be uint8 [height, width, 3], not {image_HW3.dtype} {image_HW3.shape}")
        square = Image.fromarray(image_HW3).resize((self.size, self.size), Image.Resampling.BICUBIC)
        # float64 for the product and float32 from there on, as transformers does it.
        scaled_HW3 = (np.asarray(square).astype(np.float64) * self.rescale).astype(np.float32)
        pixels_HW3 = (scaled_HW3 - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(pixels_HW3.transpose(2, 0, 1))

    def to_json(self) -> str:
        """The text of preprocessor_config.json."""
        raw = {
            "image_processor_type": "BlipImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": self.size, "width": self.size},
            "resample": int(Image.Resampling.BICUBIC),
            "do_rescale": True,
            "rescale_factor": self.rescale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        return json.dumps(raw, indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Preprocessing:
        """Reads a preprocessor_config.json. Raises CheckpointError when it asks for what we do not do."""
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        raw: dict[str, Any] = json.loads(path.read_text("utf-8"))
        for name in ("do_resize", "do_rescale", "do_normalize"):
            if raw.get(name, True) is not True:
                raise CheckpointError(f"{path}: {name} must be true")
        if raw.get("do_center_crop"):
            raise CheckpointError(f"{path}: do_center_crop is not supported; images are squeezed to a square")
        if raw.get("resample", 3) != Image.Resampling.BICUBIC:
            raise CheckpointError(f"{path}: resample must be 3 (bicubic), not {raw['resample']}")
        mean, std = _three(raw, "image_mean", CLIP_MEAN, path), _three(raw, "image_std", CLIP_STD, path)
        return cls(_square(raw, path), mean, std, float(raw.get("rescale_factor", 1 / 255)))


def _square(raw: dict[str, Any], path: Path) -> int:
    size = raw.get("size")
    if isinstance(size, int):
        return size
    if not isinstance(size, dict) or size.get("height") is None or size["height"] != size.get("width"):
        raise CheckpointError(f"{path}: size must be a square, not {size}")
    return int(size["height"])


def _three(
    raw: dict[str, Any], name: str, default: tuple[float, float, float], path: Path
) -> tuple[float, float, float]:
    values = raw.get(name, default)
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        raise CheckpointError(f"{path}: {name} must be three numbers, not {values}")
    return float(values[0]), float(values[1]), float(values[2])
