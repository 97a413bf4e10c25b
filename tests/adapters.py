"""LoRA adapters of a small checkpoint, in peft's files, beside transformers' model with the same changes folded in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from training import lora
from training.recipe import Lora

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Trained:
    """An adapter's files, and the whole model with the adapter folded in."""

    folder: Path
    merged: LlamaForCausalLM


def train(checkpoint: Path, folder: Path, seed: int, targets: tuple[str, ...], rank: int) -> Trained:
    """Adapters that change a lot: B of fresh ones is zero."""
    model = LlamaForCausalLM.from_pretrained(checkpoint / "llama", dtype=torch.float32).eval()
    lora.attach(model, Lora(rank=rank, alpha=1.5 * rank, targets=targets), seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(weight, std=0.2)
    lora.save_adapter(model, folder)
    merged = LlamaForCausalLM(model.config).eval()
    merged.load_state_dict(lora.merged_state(model), strict=False)
    return Trained(folder, merged)
