"""The LLaMA part of a checkpoint, for an engine that runs it itself: shape, tensors and the visual projection.

transformers is not imported here: its import alone takes seconds, and the engine needs none of it. A config
that asks for what the engine does not compute (scaled rotary positions, attention biases, another
activation) is refused by the name of the field, because running it anyway would give plausible nonsense.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ziya.checkpoint import CheckpointConfig, CheckpointError, read_config, verify_part
from ziya.model.layout import LlamaShape, llama_table, projection_table
from ziya.model.tensors import read

PROJECTION_FILE = "projection.safetensors"


@dataclass(frozen=True)
class LlamaWeights:
    """All that is in llama/. `tensors` has Hugging Face names and always an `lm_head.weight`, tied or not.

    A visual token enters the model as `token @ projection_weight.T + projection_bias`:
    weight [llm width, Q-Former width], bias [llm width].
    """

    config: CheckpointConfig
    shape: LlamaShape
    tensors: dict[str, Tensor]
    projection_weight: Tensor
    projection_bias: Tensor
    fingerprint: str
    tokenizer: Path


def load_llama(folder: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> LlamaWeights:
    """Loads llama/ of the checkpoint `folder`. Raises CheckpointError naming what is missing, foreign or mis-shaped."""
    config = read_config(folder)
    part = verify_part(folder, "llama", config)
    shape = read_llama_shape(part / "config.json")
    if shape.hidden != config.llm_width:
        raise CheckpointError(
            f"{part}: hidden_size is {shape.hidden}, but config.json says llm_width {config.llm_width}"
        )
    tokenizer = part / "tokenizer.json"
    if not tokenizer.is_file():
        raise CheckpointError(f"{tokenizer} is missing")
    tensors = read(part, llama_table(shape), dtype=dtype, device=device)
    tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
    projection = read(
        part,
        projection_table(config.qformer_width, shape.hidden),
        dtype=dtype,
        device=device,
        file_name=PROJECTION_FILE,
    )
    return LlamaWeights(
        config=config,
        shape=shape,
        tensors=tensors,
        projection_weight=projection["language_projection.weight"],
        projection_bias=projection["language_projection.bias"],
        fingerprint=config.fingerprints["llama"],
        tokenizer=tokenizer,
    )


def read_llama_shape(path: Path) -> LlamaShape:
    """The shape in a LlamaConfig's JSON file. Raises CheckpointError for what the engine does not compute."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    return llama_shape(json.loads(path.read_text("utf-8")), str(path))


def llama_shape(raw: Mapping[str, Any], where: str) -> LlamaShape:
    """The shape in a LlamaConfig given as a dict; `where` names it in errors."""
    _refuse_other_models(raw, where)
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"):
        if not isinstance(raw.get(name), int):
            raise CheckpointError(f"{where}: {name} is missing")
    heads = raw["num_attention_heads"]
    eos = raw.get("eos_token_id", 2)
    return LlamaShape(
        hidden=raw["hidden_size"],
        layers=raw["num_hidden_layers"],
        heads=heads,
        kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        intermediate=raw["intermediate_size"],
        vocab=raw["vocab_size"],
        rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=_rope_theta(raw, where),
        max_positions=raw.get("max_position_embeddings", 2048),
        tied=bool(raw.get("tie_word_embeddings", False)),
        eos_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),),
    )


def _refuse_other_models(raw: Mapping[str, Any], where: str) -> None:
    required = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    for name, only in required.items():
        if raw.get(name, only) != only:
            raise CheckpointError(f"{where}: {name} {raw[name]!r} is not supported, only {only!r}")


def _rope_theta(raw: Mapping[str, Any], where: str) -> float:
    """transformers 5 writes `rope_parameters`; before it there were `rope_theta` and `rope_scaling`."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise CheckpointError(f"{where}: rope scaling {kind!r} is not supported, only 'default'")
    return float(rope.get("rope_theta", raw.get("rope_theta", 10000.0)))
