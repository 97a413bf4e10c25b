"""A LLaMA of any shape with random bfloat16 weights, on the GPU if there is one: native, or one of transformers' ways.

Every process makes the same weights from the same seed, where they are needed: 26 GB are not copied about.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from benchmarks.peers import workload
from benchmarks.peers.answering import Engine, Setting, answer
from benchmarks.peers.native import Native
from benchmarks.peers.transformers import Continuous, Static
from services.llama.engine.blocks import BLOCK, blocks_for
from services.llama.engine.engine import EngineOptions, NativeEngine
from ziya.checkpoint import CheckpointConfig
from ziya.model.layout import LlamaShape, llama_table
from ziya.model.llama import LlamaWeights

VOCABULARY, VISUAL_WIDTH, CONTEXT = 32000, 768, 2048
SHAPES = {"13b": (5120, 13824, 40, 40), "small": (128, 256, 2, 4)}  # width, MLP, layers, heads
CACHE_BLOCK = 32  # positions in a block of transformers' cache


def llama_shape(name: str) -> LlamaShape:
    width, inner, layers, heads = SHAPES[name]
    return LlamaShape(
        hidden=width, layers=layers, heads=heads, kv_heads=heads, head_dim=width // heads, intermediate=inner,
        vocab=VOCABULARY, rms_eps=1e-6, rope_theta=10000.0, max_positions=CONTEXT,
    )  # fmt: skip


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def tensors(shape: LlamaShape) -> dict[str, torch.Tensor]:
    """Under Hugging Face's names, filled by `fill`."""
    sizes = llama_table(shape).items()
    return fill({name: torch.empty(size, dtype=torch.bfloat16, device=device()) for name, size in sizes})


def fill(made: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In place, as a second copy might not fit: as large as LLaMA's own initial weights; norms are 1."""
    generator = torch.Generator(device()).manual_seed(0)
    for _, tensor in sorted(made.items()):
        if tensor.dim() == 1:
            tensor.fill_(1.0)
        else:
            tensor.normal_(std=0.02, generator=generator)
    return made


class NativeOfShape(Native):
    """Text alone, with just the room that `setting.most` requests need."""

    def __init__(self, setting: Setting) -> None:
        shape = llama_shape(setting.options["shape"])
        tokenizer = _tokenizer(setting.models / "tokenizer.json")
        weights = LlamaWeights(
            config=CheckpointConfig("random", 32, 1408, VISUAL_WIDTH, shape.hidden, CONTEXT),
            shape=shape,
            tensors=tensors(shape),
            projection_weight=torch.zeros(shape.hidden, VISUAL_WIDTH, dtype=torch.bfloat16, device=device()),
            projection_bias=torch.zeros(shape.hidden, dtype=torch.bfloat16, device=device()),
            fingerprint="",
            tokenizer=tokenizer,
        )
        options = EngineOptions(
            slots=setting.most,
            threads=setting.threads,
            context=blocks_for(workload.PROMPT + workload.NEW + 1) * BLOCK,
            prefill_tokens=setting.options["prefill_tokens"],
        )
        self._text, self._visual_width = True, VISUAL_WIDTH
        self._engine, self._runner = NativeEngine(weights, options), asyncio.Runner()


class ContinuousOfShape(Continuous):
    """With a cache that holds all requests at once."""

    def __init__(self, model: Any, most: int) -> None:
        how = GenerationConfig(max_new_tokens=workload.NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
        blocks = most * -(-(workload.PROMPT + workload.NEW) // CACHE_BLOCK)
        limits = ContinuousBatchingConfig(block_size=CACHE_BLOCK, num_blocks=blocks, max_batch_tokens=2048)
        self._manager = model.init_continuous_batching(generation_config=how, continuous_batching_config=limits)
        self._manager.start()


def load(setting: Setting) -> Engine:
    """What to load is the option `kind`: "native", "static" or "continuous"."""
    torch.set_num_threads(setting.threads)
    if setting.options["kind"] == "native":
        return NativeOfShape(setting)
    model = _transformers(llama_shape(setting.options["shape"]))
    if setting.options["kind"] == "continuous":
        return ContinuousOfShape(model, setting.most)
    return Static(model, _token_ids)


def _transformers(shape: LlamaShape) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device()):
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    fill(model.state_dict())
    return model


def _token_ids(requests: range) -> dict[str, torch.Tensor]:
    ids = torch.tensor([workload.token_ids(request, workload.PROMPT) for request in requests], device=device())
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _tokenizer(path: Path) -> Path:
    """A word a token: the engine sends what it has made only when there is text."""
    Tokenizer(WordLevel({f"t{number}": number for number in range(VOCABULARY)}, unk_token="t0")).save(str(path))
    return path


if __name__ == "__main__":
    answer(load)
