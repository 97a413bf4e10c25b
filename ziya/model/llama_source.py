"""A LLaMA from other projects as the llama/ part of a checkpoint, with delta weights added to their base.

Ziya-LLaMA-13B-v1 is published as the difference to LLaMA-13B. Its own merging script adds the base to every tensor
except the token embeddings and the output head, which are published whole because the vocabulary grew from
32000 to 39424 rows. Deltas with an unchanged vocabulary (Vicuna's) are differences throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor
from transformers.models.llama.configuration_llama import LlamaConfig

from ziya.checkpoint import CheckpointError
from ziya.model.llama import llama_shape
from ziya.model.llama_tokenizer import drop_token, read_tokenizer
from ziya.model.sources import open_weights, read_json, rename
from ziya.model.tensors import Lazy, Source
from ziya.model.weights import LlamaPart

_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
# The final norm scales by about one; in a difference of two models it is about zero.
_DELTA_NORM = 0.2


def llama_config(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A LlamaConfig as transformers 5 writes it, with the fields that an older file left at their defaults."""
    if raw.get("model_type", "llama") != "llama":
        raise CheckpointError(f"{where}: the language model is {raw['model_type']!r}; only 'llama' is supported")
    config: dict[str, Any] = LlamaConfig.from_dict(dict(raw)).to_dict()
    llama_shape(config, where)
    return config


def llama_names(tensors: Lazy) -> Lazy:
    """LlamaForCausalLM's names, from those with or without `model.`; buffers that old files saved are left out."""

    def name_of(name: str) -> str | None:
        if name.endswith("rotary_emb.inv_freq"):
            return None
        return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"

    return rename(tensors, name_of)


def read_llama(folder: Path, base: Path | None) -> tuple[dict[str, Any], Lazy]:
    """Config and tensors of a LLaMA folder; with `base`, the folder holds delta weights. Raises CheckpointError."""
    config = llama_config(read_json(folder / "config.json"), str(folder / "config.json"))
    tensors = llama_names(open_weights(folder))
    if base is not None:
        return config, add_base(tensors, llama_names(open_weights(base)), str(base))
    refuse_delta(tensors, folder)
    return config, tensors


def add_base(delta: Lazy, base: Lazy, where: str) -> Lazy:
    """base + delta, one tensor at a time; see the module's docstring for the vocabulary."""
    merged: dict[str, Source] = {}
    for name, source in delta.sources.items():
        if name not in base:
            raise CheckpointError(f"{where}: tensor {name} of the delta weights is not in the base model")
        ground = base.sources[name]
        if ground.shape == source.shape:
            merged[name] = Source(source.shape, partial(_sum, source, ground))
        elif name in _VOCABULARY and ground.shape[1:] == source.shape[1:]:
            merged[name] = source
        else:
            shapes = f"{list(ground.shape)}, which does not go with the delta's {list(source.shape)}"
            raise CheckpointError(f"{where}: {name} has shape {shapes}")
    return Lazy(merged)


def refuse_delta(tensors: Lazy, folder: Path) -> None:
    """Raises CheckpointError for delta weights without their base: they load well and talk nonsense."""
    norm = tensors.sources.get("model.norm.weight")
    if norm is not None and float(norm.read().float().abs().mean()) < _DELTA_NORM:
        raise CheckpointError(
            f"{folder} seems to hold delta weights (its final norm is about zero): give the base model with --base"
        )


def llama_part(
    config: Mapping[str, Any], tensors: Lazy, projection: Lazy, folder: Path, image_id: int | None
) -> LlamaPart:
    """The part from tensors and the tokenizer in `folder`; `image_id` is Hugging Face's placeholder, to be dropped."""
    tokenizer = read_tokenizer(folder)
    config = dict(config)
    if image_id is not None:
        tokenizer = _without_placeholder(tokenizer, image_id)
        if image_id == config["vocab_size"] - 1:
            # The row was added for the placeholder alone.
            config["vocab_size"] = image_id
            tensors = _with_rows(tensors, image_id)
    if config.get("tie_word_embeddings"):
        tensors = rename(tensors, lambda name: None if name == "lm_head.weight" else name)
    last = max(tokenizer.get_vocab().values())
    if last >= config["vocab_size"]:
        raise CheckpointError(f"{folder}: the tokenizer has id {last}, but the model has {config['vocab_size']} rows")
    kept = {name: (folder / name).read_bytes() for name in ("tokenizer.model",) if (folder / name).is_file()}
    return LlamaPart(config, tensors, projection, tokenizer.to_str(), kept)


def _without_placeholder(tokenizer: Tokenizer, image_id: int) -> Tokenizer:
    content = tokenizer.id_to_token(image_id)
    return tokenizer if content is None else drop_token(tokenizer, content)


def _with_rows(tensors: Lazy, rows: int) -> Lazy:
    cut = {
        name: Source((rows, *source.shape[1:]), partial(_first_rows, source, rows))
        for name, source in tensors.sources.items()
        if name in _VOCABULARY
    }
    return Lazy(tensors.sources | cut)


def _first_rows(source: Source, rows: int) -> Tensor:
    return source.read()[:rows].clone()


def _sum(delta: Source, base: Source) -> Tensor:
    change = delta.read()
    return (change.float() + base.read().float()).to(change.dtype)
