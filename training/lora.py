"""LoRA on the LLaMA (arXiv 2106.09685), with peft: put adapters in, take them out, or fold them into the weights.

Adapters are put into the LLaMA itself, without peft's wrapper around it, so that its names and calls stay as they are.
Everything here also works on weights sharded by FSDP, where each process has to make the call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.func import functional_call
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from training.errors import BadConfig
from training.recipe import Lora

NAME = "default"
_PREFIX = "base_model.model."


def attach(llama: LlamaForCausalLM, how: Lora, seed: int) -> None:
    """Puts fresh adapters in, which change nothing yet; equal seeds give equal ones.

    Raises BadConfig for targets that the model does not have.
    """
    present = {name.rpartition(".")[2] for name, module in llama.named_modules() if isinstance(module, torch.nn.Linear)}
    if missing := sorted(set(how.targets) - present):
        raise BadConfig(f"lora.targets names {', '.join(missing)}; this LLaMA has {', '.join(sorted(present))}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(_peft_config(how), llama, NAME)


def adapter_state(llama: LlamaForCausalLM) -> dict[str, Tensor]:
    """The adapters alone, by peft's names, as `adapter_model.safetensors` holds them."""
    state: dict[str, Tensor] = {}
    for name, layer in _layers(llama).items():
        for side, matrix in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            state[f"{_PREFIX}{name}.{side}.weight"] = whole(matrix[NAME].weight)
    return state


def save_adapter(llama: LlamaForCausalLM, folder: Path, *, write: bool = True) -> None:
    """Writes the adapters so that `PeftModel.from_pretrained(llama, folder)` gives this model again.

    Where weights are sharded every process has to make the call, and only the one with `write` writes.
    """
    layers = _layers(llama)
    state = {name: tensor.to("cpu").contiguous() for name, tensor in adapter_state(llama).items()}
    if not write:
        return
    first = next(iter(layers.values()))
    targets = sorted({name.rpartition(".")[2] for name in layers})
    how = Lora(first.r[NAME], first.lora_alpha[NAME], _dropout(first), tuple(targets))
    config = _peft_config(how)
    config.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def merged_state(llama: LlamaForCausalLM) -> dict[str, Tensor]:
    """LlamaForCausalLM's tensors by Hugging Face's names, with the adapters folded in: W + scale · B A, in float32.

    Other tensors come as they are; a tied head is left out. Without adapters it is the state dict.
    """
    layers = _layers(llama, required=False)
    state: dict[str, Tensor] = {}
    for name, tensor in llama.state_dict().items():
        owner, _, rest = name.partition(".base_layer.")
        if ".lora_" in name or (name == "lm_head.weight" and llama.config.tie_word_embeddings):
            continue
        plain = f"{owner}.{rest}" if rest else name
        state[plain] = _merged(layers[owner]) if rest == "weight" else whole(tensor)
    return state


@torch.no_grad()
def merge_error(llama: LlamaForCausalLM, ids_BT: Tensor) -> float:
    """Largest difference of any logit between the model with adapters and the merged one, both in float32."""
    training = llama.training
    llama.eval()
    apart = {name: weight.detach().float() for name, weight in llama.named_parameters()}
    merged = dict(apart)
    for name, layer in _layers(llama).items():
        merged[f"{name}.base_layer.weight"] = _merged(layer)
        merged[f"{name}.lora_B.{NAME}.weight"] = torch.zeros_like(apart[f"{name}.lora_B.{NAME}.weight"])
    with torch.autocast(ids_BT.device.type, enabled=False):
        one, other = (_logits(llama, weights, ids_BT) for weights in (apart, merged))
    llama.train(training)
    return float((one - other).abs().max())


def _logits(llama: LlamaForCausalLM, weights: dict[str, Tensor], ids_BT: Tensor) -> Tensor:
    logits: Tensor = functional_call(llama, weights, (), {"input_ids": ids_BT, "use_cache": False}).logits
    return logits


def _peft_config(how: Lora) -> LoraConfig:
    return LoraConfig(
        r=how.rank,
        lora_alpha=how.alpha,  # type: ignore[arg-type]  # peft divides it by the rank; a fraction is as good
        lora_dropout=how.dropout,
        target_modules=list(how.targets),
        task_type=TaskType.CAUSAL_LM,
    )


def _layers(llama: LlamaForCausalLM, *, required: bool = True) -> dict[str, Any]:
    layers = {name: module for name, module in llama.named_modules() if isinstance(module, LoraLayer)}
    if required and not layers:
        raise BadConfig("this LLaMA has no adapters")
    return layers


def _merged(layer: Any) -> Tensor:
    down, up = (whole(side[NAME].weight).float() for side in (layer.lora_A, layer.lora_B))
    scale = float(layer.scaling[NAME])
    return whole(layer.base_layer.weight).float() + scale * (up @ down)


def _dropout(layer: Any) -> float:
    return float(getattr(layer.lora_dropout[NAME], "p", 0.0))


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that FSDP may have sharded."""
    tensor = tensor.detach()
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full
