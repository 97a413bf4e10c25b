"""FLOPs against the closed form of a LLaMA."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from tests.tiny import llama_config
from training.flops import FlopMeter, peak_flops


@pytest.mark.parametrize("learns", [True, False])
def test_a_step_of_a_llama_is_its_matrix_products(learns: bool) -> None:
    rows, length = 4, 32
    llama = LlamaForCausalLM(llama_config(300)).requires_grad_(learns)
    embeds = torch.randn(rows, length, 64, requires_grad=True)
    meter = FlopMeter()
    with meter.counting(rows * length):
        llama(inputs_embeds=embeds, use_cache=False).logits.square().sum().backward()

    # Query and output 64 x 64, key and value 64 x 32, three of 64 x 128, in two layers; the head 64 x 300.
    matrices = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 64 * 300
    dense = 2 * rows * length * matrices * (3 if learns else 2)
    assert dense <= meter.of(rows * length) <= 1.25 * dense  # and the attention's own products
    assert meter.of(2 * rows * length) == 2 * meter.of(rows * length)


@pytest.mark.parametrize("compiles", [False, True])
def test_only_the_first_step_is_counted_compiled_or_not(compiles: bool) -> None:
    layer, meter = nn.Linear(8, 8, bias=False), FlopMeter()
    assert meter.of(1) == 0
    if compiles:
        layer.compile()
    for size in (2, 4):
        with meter.counting(2):
            layer(torch.randn(size, 8)).sum().backward()
    assert meter.of(1) == 2 * (2 * 8 * 8)  # forward, and the weights' gradient


def test_the_processors_peak_is_measured() -> None:
    peak = peak_flops(torch.device("cpu"), torch.float32)
    assert peak is not None
    assert peak > 1e8
