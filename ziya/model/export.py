"""A checkpoint as a Hugging Face folder that transformers and vLLM load as it is.

    Q-Former does not read the instruction    Blip2ForConditionalGeneration
    Q-Former reads the instruction            InstructBlipForConditionalGeneration (transformers only)

Both mark the places of the visual tokens with an `<image>` token, which LLaMA does not have: it takes an unused
row of the embeddings, or a new one. The tokenizer adds no bos, so that a processor's input is the placeholders and
then the prompt, as this project's own engine has it. Retrieval heads have no place in these layouts and stay behind.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from ziya.checkpoint import CheckpointConfig, CheckpointError, read_config, verify_part
from ziya.model import preprocessing
from ziya.model.atomic import replace_folder
from ziya.model.convert import QFORMER_TOKENIZER
from ziya.model.llama import PROJECTION_FILE
from ziya.model.sources import open_weights, read_json
from ziya.model.tensors import SHARD_BYTES, Lazy, Source, lazy, locate, write

IMAGE_TOKEN = "<image>"
_VOCABULARY = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")


def export(
    source: Path,
    target: Path,
    *,
    progress: Callable[[str], None] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes the Hugging Face folder `target` from the checkpoint `source`. Raises CheckpointError."""
    if target.exists():
        raise CheckpointError(f"{target} is there already; choose another name")
    config = read_config(source)
    vision, qformer, llama = (verify_part(source, part, config) for part in ("vision", "qformer", "llama"))
    tokenizer: Tokenizer = Tokenizer.from_file(str(llama / "tokenizer.json"))
    text = read_json(llama / "config.json")
    image_id = _add_image_token(tokenizer)
    rows = max(text["vocab_size"], image_id + 1)
    tensors = _grown(_tensors(source, config), rows)
    if progress is not None:
        progress(f"{source}: {len(tensors)} tensors; {IMAGE_TOKEN} has id {image_id}")
    with replace_folder(target) as draft:
        _write_json(draft / "config.json", _model_config(source, config, {**text, "vocab_size": rows}, image_id))
        _write_json(draft / "generation_config.json", _generation_config(text))
        shutil.copy(vision / preprocessing.FILE_NAME, draft)
        _write_processor(draft, config)
        _write_tokenizer(draft, tokenizer, text)
        if config.qformer_reads_instruction:
            _write_qformer_tokenizer(draft / QFORMER_TOKENIZER, qformer)
        write(draft, tensors, shard_bytes=shard_bytes)


def _add_image_token(tokenizer: Tokenizer) -> int:
    tokenizer.add_special_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)])
    number = tokenizer.token_to_id(IMAGE_TOKEN)
    assert number is not None, "a token that was just added has an id"
    return number


def _tensors(source: Path, config: CheckpointConfig) -> Lazy:
    """All tensors under the names of the whole Hugging Face model."""
    vision, qformer = open_weights(source / "vision"), open_weights(source / "qformer")
    llama, projection = open_weights(source / "llama"), lazy(locate(source / "llama", PROJECTION_FILE))
    sources = {f"vision_model.{name}": tensor for name, tensor in vision.sources.items()}
    for name, tensor in qformer.sources.items():
        if (new := _qformer_name(name, config.qformer_reads_instruction)) is not None:
            sources[new] = tensor
    sources |= {f"language_model.{name}": tensor for name, tensor in llama.sources.items()}
    return Lazy(sources | projection.sources)


def _qformer_name(name: str, instruct: bool) -> str | None:
    """Without retrieval heads; for InstructBLIP the embeddings and their norm move into the Q-Former."""
    if name == "query_tokens":
        return name
    if instruct:
        if name.startswith("embeddings."):
            return f"qformer.{name}"
        return (
            name.replace("qformer.layernorm", "qformer.embeddings.layernorm") if name.startswith("qformer.") else None
        )
    # Without an instruction the text branch only serves retrieval.
    text_branch = ".intermediate.dense" in name or ".output.dense" in name or ".output.LayerNorm" in name
    if not name.startswith("qformer.") or (text_branch and "attention" not in name):
        return None
    return name


def _grown(tensors: Lazy, rows: int) -> Lazy:
    """The same with zero rows added to the vocabulary, where it has fewer."""
    grown = {
        name: Source((rows, *source.shape[1:]), partial(_pad_rows, source, rows))
        for name, source in tensors.sources.items()
        if name in _VOCABULARY and source.shape[0] < rows
    }
    return Lazy(tensors.sources | grown)


def _pad_rows(source: Source, rows: int) -> Tensor:
    tensor = source.read()
    return torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])


def _model_config(source: Path, config: CheckpointConfig, text: Mapping[str, Any], image_id: int) -> dict[str, Any]:
    instruct = config.qformer_reads_instruction
    family = "instructblip" if instruct else "blip_2"
    vision = {**read_json(source / "vision" / "config.json"), "model_type": f"{family}_vision_model"}
    qformer = {**read_json(source / "qformer" / "config.json"), "model_type": f"{family}_qformer"}
    qformer.pop("use_qformer_text_input")
    kind = "InstructBlipForConditionalGeneration" if instruct else "Blip2ForConditionalGeneration"
    return {
        "architectures": [kind],
        "model_type": "instructblip" if instruct else "blip-2",
        "image_token_index": image_id,
        "num_query_tokens": config.queries,
        "use_decoder_only_language_model": True,
        "tie_word_embeddings": bool(text.get("tie_word_embeddings")),
        "vision_config": vision,
        "qformer_config": qformer,
        "text_config": {**text, "architectures": ["LlamaForCausalLM"]},
    }


def _generation_config(text: Mapping[str, Any]) -> dict[str, Any]:
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: text[name] for name in ids if text.get(name) is not None}


def _write_processor(folder: Path, config: CheckpointConfig) -> None:
    name = "InstructBlipProcessor" if config.qformer_reads_instruction else "Blip2Processor"
    _write_json(folder / "processor_config.json", {"processor_class": name, "num_query_tokens": config.queries})


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, text: Mapping[str, Any]) -> None:
    raw = json.loads(tokenizer.to_str())
    raw["post_processor"] = None  # it would add a bos, which this project's prompts do not have
    _write_json(folder / "tokenizer.json", raw)
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left"}
    for name in ("bos", "eos", "pad"):
        ids = text.get(f"{name}_token_id")
        number = ids[0] if isinstance(ids, list) else ids
        if number is not None and (content := tokenizer.id_to_token(number)) is not None:
            settings[f"{name}_token"] = content
    _write_json(folder / "tokenizer_config.json", settings)


def _write_qformer_tokenizer(folder: Path, qformer: Path) -> None:
    folder.mkdir()
    shutil.copy(qformer / "tokenizer.json", folder)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right", **special}
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, raw: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(raw, ensure_ascii=False, indent=2) + "\n", "utf-8")
