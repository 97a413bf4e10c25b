"""Adapters: what they change, merged and apart, and that peft itself reads what is exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from tests import tiny
from training import lora
from training.errors import BadConfig
from training.recipe import Lora

HOW = Lora(rank=3, alpha=6.0, dropout=0.25)
IDS = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(0))


def llama(*, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny.llama_config(262, tied=tied)).eval()


def trained(*, tied: bool = False, how: Lora = HOW) -> LlamaForCausalLM:
    """A LLaMA whose adapters do something: B of fresh ones is zero."""
    model = llama(tied=tied)
    lora.attach(model, how, seed=1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(weight, std=0.3)
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=IDS).logits
    return found


def test_fresh_adapters_change_nothing_and_depend_on_the_seed_alone() -> None:
    plain, made = llama(), [llama() for _ in range(3)]
    for number, model in enumerate(made):
        torch.manual_seed(number)
        before = torch.random.get_rng_state()
        lora.attach(model, HOW, seed=min(number, 1))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(logits(made[0].eval()), logits(plain))
    first, second, third = (lora.adapter_state(model) for model in made)
    downs = [name for name in first if ".lora_A." in name]
    assert len(downs) == 2 * 7
    assert not any(torch.equal(first[name], second[name]) for name in downs)
    assert all(torch.equal(second[name], third[name]) for name in downs)


@pytest.mark.parametrize("tied", [False, True])
def test_merged_weights_are_a_plain_llama_that_says_the_same(tied: bool) -> None:
    model, plain = trained(tied=tied), llama(tied=tied)
    merged = lora.merged_state(model)
    assert set(merged) == set(plain.state_dict()) - ({"lm_head.weight"} if tied else set())
    plain.load_state_dict(merged, strict=not tied)
    assert float((logits(plain) - logits(model)).abs().max()) < 1e-4
    assert float((logits(llama(tied=tied)) - logits(model)).abs().max()) > 0.1


def test_merged_matrix_is_w_plus_scale_b_a() -> None:
    model = trained()
    name = "model.layers.1.mlp.up_proj"
    layer = model.get_submodule(name)
    down, up = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    expected = llama().get_submodule(name).weight.detach() + 6.0 / 3 * up @ down
    assert torch.allclose(lora.merged_state(model)[f"{name}.weight"], expected, atol=1e-6)


def test_merge_error_is_rounding_when_the_merge_is_right_and_large_when_it_is_not() -> None:
    model = trained()
    before, mode = lora.adapter_state(model), model.training
    assert lora.merge_error(model, IDS) < 1e-4
    assert model.training is mode
    assert all(torch.equal(before[name], tensor) for name, tensor in lora.adapter_state(model).items())
    # Folded in by peft already: folding once more is wrong.
    model.get_submodule("model.layers.0.self_attn.q_proj").merge()
    assert lora.merge_error(model, IDS) > 0.1


def test_merging_without_adapters_is_the_state_dict() -> None:
    model = llama()
    merged = lora.merged_state(model)
    assert all(torch.equal(merged[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(BadConfig, match="no adapters"):
        lora.adapter_state(model)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers so
@pytest.mark.parametrize("targets", [Lora().targets, ("q_proj", "v_proj")])
def test_peft_reads_an_exported_adapter(tmp_path: Path, targets: tuple[str, ...]) -> None:
    model = trained(how=Lora(rank=3, alpha=6.0, dropout=0.25, targets=targets))
    lora.save_adapter(model, tmp_path / "adapter")
    read = PeftModel.from_pretrained(llama(), str(tmp_path / "adapter")).eval()
    assert torch.equal(logits(read), logits(model))
    config = read.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 6.0, 0.25)
    assert set(config.target_modules) == set(targets)
    assert float((logits(read.merge_and_unload()) - logits(model)).abs().max()) < 1e-4


def test_unknown_targets_are_refused_by_name() -> None:
    with pytest.raises(BadConfig, match=r"query_key_value.*this LLaMA has.*q_proj"):
        lora.attach(llama(), Lora(targets=("q_proj", "query_key_value")), seed=0)
