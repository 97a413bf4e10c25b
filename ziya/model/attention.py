"""The ViT's attention in bfloat16 on a processor: one picture at a time, as two matrix products with a softmax between.

torch's fused kernel (`sdpa`) is made so that the scores of long sequences are never held whole. Those of one picture
fit into a processor's cache, and there the plain products take a little more than half of its time in bfloat16, at 257
as well as at 677 positions; those of a whole batch do not fit, and lose it again. In float32 there is nothing to gain.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import AttentionInterface

NAME = "ziya_bfloat16"


def best_attention(dtype: torch.dtype, device: str | torch.device) -> str:
    """The name, as transformers takes it, of what is fastest for a ViT that computes so."""
    if dtype is not torch.bfloat16 or torch.device(device).type != "cpu":
        return "sdpa"
    AttentionInterface.register(NAME, attend)
    return NAME


def attend(
    module: torch.nn.Module,
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    attention_mask: None = None,
    *,
    scaling: float,
    **rest: Any,
) -> tuple[Tensor, None]:
    """[B, heads, N, D] each -> [B, N, heads, D], as transformers' attention functions do; without mask or dropout."""
    if attention_mask is not None or rest.get("dropout"):
        raise ValueError("this attention has neither a mask nor dropout")
    batch, heads, positions, width = query_BHND.shape
    attended_BNHD = query_BHND.new_empty(batch, positions, heads, width)
    unused = query_BHND.new_empty(())
    for query_HND, key_HND, value_HND, attended_NHD in zip(
        query_BHND, key_BHND, value_BHND, attended_BNHD, strict=True
    ):
        scores_HNN = torch.baddbmm(unused, query_HND, key_HND.transpose(1, 2), beta=0, alpha=scaling)
        attended_NHD.copy_(torch.bmm(scores_HNN.softmax(-1), value_HND).transpose(0, 1))
    return attended_BNHD, None
