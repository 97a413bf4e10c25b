"""From what was trained to a checkpoint that serving loads.

A part that did not learn is taken over from the base checkpoint as the folder that it is, byte for byte, and keeps its
fingerprint: features computed from it stay valid. A part that learned is written anew. LoRA adapters are merged into
the LLaMA; beside the checkpoint they can be kept in peft's own format.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.lora import whole
from training.model import VisualLanguageModel, there
from ziya.checkpoint import CheckpointConfig, read_config
from ziya.model.llama import PROJECTION_FILE
from ziya.model.tensors import lazy, locate
from ziya.model.weights import LlamaPart, QFormerPart, VisionPart, save_checkpoint

# What transformers writes into every config and what means nothing for a part of a model.
_MEANINGLESS = frozenset(
    {
        "_name_or_path",
        "chunk_size_feed_forward",
        "dtype",
        "id2label",
        "is_encoder_decoder",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
    }
)


def export(
    model: VisualLanguageModel,
    base: Path,
    target: Path,
    *,
    learned: Collection[str],
    llama_tensors: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    name: str | None = None,
    itc_temperature: float | None = None,
    write: bool = True,
) -> CheckpointConfig | None:
    """Writes the checkpoint `target`, atomically; returns its config.

    `learned` names parts ("vision", "qformer", "projection", "llama"); `llama_tensors` are the LLaMA by Hugging Face
    names, merged (training/lora.py), and needed when adapters learned. `itc_temperature` is for where ITC learned.
    Where weights are sharded every process has to make the call, and only the one with `write` writes. Raises
    CheckpointError.
    """
    config = read_config(base)
    vision = _vision(model, dtype) if "vision" in learned else base / "vision"
    qformer = _qformer(model, base, dtype) if "qformer" in learned else base / "qformer"
    llama: LlamaPart | Path = base / "llama"
    if {"llama", "projection"} & set(learned):
        llama = _llama(model, base, _llama_tensors(model, base, learned, llama_tensors, dtype), dtype)
    if not write:
        return None
    learnt = config.itc_temperature if itc_temperature is None else itc_temperature
    new = replace(config, name=name or config.name, itc_temperature=learnt, fingerprints={})
    return save_checkpoint(target, config=new, vision=vision, qformer=qformer, llama=llama)


def _vision(model: VisualLanguageModel, dtype: torch.dtype) -> VisionPart:
    vision = there(model.vision, "vision")
    return VisionPart(plain(vision.config.to_dict()), _in(vision.state_dict(), dtype), model.preprocessing)


def _qformer(model: VisualLanguageModel, base: Path, dtype: torch.dtype) -> QFormerPart:
    qformer, tokenizer = there(model.qformer, "qformer"), base / "qformer" / "tokenizer.json"
    text = tokenizer.read_text("utf-8") if tokenizer.is_file() else None
    return QFormerPart(plain(qformer.config.to_dict()), _in(qformer.state_dict(), dtype), text)


def _llama_tensors(
    model: VisualLanguageModel,
    base: Path,
    learned: Collection[str],
    merged: Mapping[str, Tensor] | None,
    dtype: torch.dtype,
) -> Mapping[str, Tensor]:
    """A LLaMA that only got a new projection keeps its numbers: in training it may be in another type."""
    if "llama" not in learned:
        return lazy(locate(base / "llama"))
    llama = there(model.llama, "llama")
    own = dict(merged if merged is not None else llama.state_dict())
    if llama.config.tie_word_embeddings:
        own.pop("lm_head.weight", None)
    return _in(own, dtype)


def _llama(model: VisualLanguageModel, base: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> LlamaPart:
    llama, folder = there(model.llama, "llama"), base / "llama"
    projection = there(model.language_projection, "projection").state_dict(prefix="language_projection.")
    ours = {"config.json", "tokenizer.json", PROJECTION_FILE}
    others = [path for path in folder.iterdir() if path.name not in ours and ".safetensors" not in path.name]
    return LlamaPart(
        config=plain(llama.config.to_dict()),
        tensors=tensors,
        projection=_in(projection, dtype),
        tokenizer=(folder / "tokenizer.json").read_text("utf-8"),
        files={path.name: path.read_bytes() for path in others},
    )


def plain(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config without empty fields and what has no meaning for a part of a model."""
    return {name: value for name, value in raw.items() if name not in _MEANINGLESS and value is not None}


def _in(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: whole(tensor).to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
