"""The ViT's own attention is transformers', and as near to float32 as theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import build_checkpoint
from ziya.model.attention import NAME, attend, best_attention
from ziya.model.vision import VisionEncoder


def heads(batch: int, positions: int) -> list[torch.Tensor]:
    """Query, key and value as the ViT makes them: views of one product."""
    made = torch.randn(batch, positions, 3, 4, 16, generator=torch.Generator().manual_seed(positions))
    return list(made.permute(2, 0, 3, 1, 4))


@pytest.mark.parametrize(("batch", "positions"), [(1, 5), (3, 17), (2, 257)])
def test_it_is_softmax_attention(batch: int, positions: int) -> None:
    query, key, value = heads(batch, positions)
    weights = torch.softmax(query.double() @ key.double().transpose(-1, -2) * 0.3, -1)
    expected = (weights @ value.double()).transpose(1, 2)
    found, nothing = attend(torch.nn.Module(), query, key, value, None, dropout=0.0, scaling=0.3)
    assert nothing is None
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_what_it_cannot_do_is_refused() -> None:
    query, key, value = heads(1, 5)
    with pytest.raises(ValueError, match="neither a mask nor dropout"):
        attend(torch.nn.Module(), query, key, value, None, dropout=0.1, scaling=0.3)


def test_it_is_chosen_for_bfloat16_on_a_processor_alone() -> None:
    assert best_attention(torch.bfloat16, "cpu") == NAME
    assert best_attention(torch.float32, torch.device("cpu")) == best_attention(torch.bfloat16, "cuda:0") == "sdpa"


def test_features_are_as_near_to_float32_as_those_of_the_fused_kernel(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path)
    pixels = np.random.default_rng(0).normal(size=(6, 3, 32, 32)).astype(np.float32)
    exact = VisionEncoder.load(folder)(pixels).astype(np.float32)
    ours, fused = (VisionEncoder.load(folder, dtype=torch.bfloat16, attention=name) for name in ("", "sdpa"))
    apart = [float(np.abs(encoder(pixels).astype(np.float32) - exact).mean()) for encoder in (ours, fused)]
    assert 0 < apart[0] < 1.1 * apart[1]
