"""The vision encoder: pixels in, one feature vector a patch out (Blip2VisionModel; EVA ViT-g at full size).

Shapes: B images, S pixels a side, N = patches + 1 (the class token comes first), D vision width. numpy on
both sides, so that a service needs no torch of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel

from ziya.checkpoint import CheckpointConfig, CheckpointError, read_config, verify_part
from ziya.model import preprocessing
from ziya.model.attention import best_attention
from ziya.model.layout import VisionShape, vision_table
from ziya.model.preprocessing import Preprocessing
from ziya.model.tensors import read


class VisionEncoder:
    """The ViT with its preprocessing; not thread-safe to move, safe to call from one thread at a time."""

    def __init__(
        self, model: Blip2VisionModel, preprocessing: Preprocessing, config: CheckpointConfig, fingerprint: str
    ) -> None:
        self.preprocessing = preprocessing
        self.config = config
        self.fingerprint = fingerprint
        self._model = model
        weight = model.post_layernorm.weight
        self._dtype, self._device = weight.dtype, weight.device

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        attention: str = "",
    ) -> VisionEncoder:
        """Loads vision/ of a checkpoint folder. Raises CheckpointError naming what is wrong with it.

        `attention` is a name of transformers'; the fastest for `dtype` and `device` where none is given.
        """
        config = read_config(folder)
        part = verify_part(folder, "vision", config)
        attention = attention or best_attention(dtype, device)
        model, steps = load_vision(part, dtype=dtype, device=device, attention=attention)
        if model.config.hidden_size != config.vision_width:
            width = model.config.hidden_size
            raise CheckpointError(f"{part}: hidden_size is {width}, but vision_width is {config.vision_width}")
        return cls(model.eval(), steps, config, config.fingerprints["vision"])

    @property
    def positions(self) -> int:
        """N: how many feature vectors an image gives."""
        return int(self._model.embeddings.num_positions)

    @torch.inference_mode()
    def __call__(self, pixels_B3SS: NDArray[np.float32]) -> NDArray[np.float16]:
        """float32 [B, 3, S, S] -> float16 [B, N, D]."""
        size = self.preprocessing.size
        if pixels_B3SS.ndim != 4 or pixels_B3SS.shape[1:] != (3, size, size):
            raise ValueError(f"pixels must be [batch, 3, {size}, {size}], not {list(pixels_B3SS.shape)}")
        pixels = torch.from_numpy(np.ascontiguousarray(pixels_B3SS)).to(self._device, self._dtype)
        features_BND = self._model(pixel_values=pixels).last_hidden_state
        features: NDArray[np.float16] = features_BND.to("cpu", torch.float16).numpy()
        return features


def load_vision(
    part: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", attention: str = "sdpa"
) -> tuple[Blip2VisionModel, Preprocessing]:
    """The module in a vision/ folder, in train mode, without the fingerprint check; for training and conversion."""
    path = part / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    raw = json.loads(path.read_text("utf-8"))
    tensors = read(part, vision_table(VisionShape.of(raw)), dtype=dtype, device=device)
    with torch.device("meta"):
        model = Blip2VisionModel(Blip2VisionConfig.from_dict(raw, attn_implementation=attention))
    model.load_state_dict(tensors, assign=True)
    steps = Preprocessing.read(part / preprocessing.FILE_NAME)
    if steps.size != model.config.image_size:
        raise CheckpointError(
            f"{part}: the image processor gives {steps.size} pixels, the ViT takes {model.config.image_size}"
        )
    return model.train(), steps
