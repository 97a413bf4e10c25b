"""What of a checkpoint's llama/ is needed beside an engine that reads the weights itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ziya.checkpoint import CheckpointError, read_config, verify_part
from ziya.model.layout import LlamaShape, projection_table
from ziya.model.llama import PROJECTION_FILE, read_llama_shape
from ziya.model.tensors import read


@dataclass(frozen=True)
class Frame:
    """`llama` is the folder. A visual token enters the model as `token @ projection_weight.T + projection_bias`."""

    llama: Path
    shape: LlamaShape
    projection_weight: Tensor
    projection_bias: Tensor

    @property
    def tokenizer(self) -> Path:
        return self.llama / "tokenizer.json"


def read_frame(checkpoint: Path, dtype: torch.dtype) -> Frame:
    """Raises CheckpointError naming what is missing, foreign or mis-shaped; the weights are checked by their digest."""
    config = read_config(checkpoint)
    part = verify_part(checkpoint, "llama", config)
    shape = read_llama_shape(part / "config.json")
    if shape.hidden != config.llm_width:
        raise CheckpointError(f"{part}: hidden_size is {shape.hidden}, but config.json says {config.llm_width}")
    table = projection_table(config.qformer_width, shape.hidden)
    tensors = read(part, table, dtype=dtype, device="cpu", file_name=PROJECTION_FILE)
    frame = Frame(part, shape, tensors["language_projection.weight"], tensors["language_projection.bias"])
    if not frame.tokenizer.is_file():
        raise CheckpointError(f"{frame.tokenizer} is missing")
    return frame
