"""`ziya convert`: other projects' weights as a checkpoint folder.

    Hugging Face BLIP-2     a whole model with a LLaMA inside
    Ziya release A          vision part, Q-Former and projection; the LLaMA is a folder of its own (maybe a delta)
    Ziya release B          a whole model whose Q-Former reads the instruction (InstructBLIP)

What a folder is, is told by the names of its tensors and not by its config: release B calls itself `blip-2`.
Tensors pass one by one from the source into shards, so that 14 billion parameters need a few GiB of memory.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
from transformers.models.blip_2.configuration_blip_2 import Blip2QFormerConfig, Blip2VisionConfig

from ziya.checkpoint import FORMAT, CheckpointConfig, CheckpointError
from ziya.model import preprocessing
from ziya.model.llama_source import llama_config, llama_names, llama_part, read_llama, refuse_delta
from ziya.model.preprocessing import Preprocessing
from ziya.model.sources import below, open_weights, read_json, rename
from ziya.model.tensors import SHARD_BYTES, Lazy
from ziya.model.weights import LlamaPart, QFormerPart, VisionPart, save_checkpoint

Progress = Callable[[str], None]
QFORMER_TOKENIZER = "qformer_tokenizer"
_WORDS = "embeddings.word_embeddings.weight"
_POSITIONS = "embeddings.position_embeddings.weight"


@dataclass(frozen=True)
class Layout:
    """What the names of a folder's tensors say it is."""

    title: str
    has_llama: bool
    reads_instruction: bool


def convert(
    source: Path,
    target: Path,
    *,
    llama: Path | None = None,
    base: Path | None = None,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> CheckpointConfig:
    """Writes the checkpoint `target` from the folder `source`.

    `llama` is the folder of the language model when `source` has none, `base` the model that it is a delta to.
    Raises CheckpointError when something is missing or is not what it should be; nothing is written then.
    """
    say = progress or _silent
    if target.exists():
        raise CheckpointError(f"{target} is there already; choose another name")
    raw = read_json(source / "config.json")
    if raw.get("format") == FORMAT:
        raise CheckpointError(f"{source} is a checkpoint already")
    tensors = rename(open_weights(source), _plain_name)
    layout = find_layout(tensors, source)
    say(f"{source}: {layout.title}, {len(tensors)} tensors")
    _check_llama_arguments(layout, source, llama, base)
    vision = _vision_part(raw, tensors, source)
    qformer = _qformer_part(raw, tensors, source, layout)
    part = _llama_part(raw, tensors, source, llama, base)
    config = CheckpointConfig(
        name=source.resolve().name,
        queries=qformer.tensors["query_tokens"].shape[1],
        vision_width=vision.config["hidden_size"],
        qformer_width=qformer.config["hidden_size"],
        llm_width=part.config["hidden_size"],
        context_length=part.config["max_position_embeddings"],
        qformer_reads_instruction=layout.reads_instruction,
    )
    say(f"writing {target}")
    return save_checkpoint(target, config=config, vision=vision, qformer=qformer, llama=part, shard_bytes=shard_bytes)


def find_layout(tensors: Mapping[str, Any], where: Path) -> Layout:
    """The layout with these names. Raises CheckpointError that says what was found when it is none of ours."""
    have = {prefix: any(name.startswith(prefix) for name in tensors) for prefix in _PARTS}
    reads = f"qformer.{_WORDS}" in tensors
    if have["vision_model."] and have["qformer.encoder."] and have["query_tokens"] and have["language_projection."]:
        whole = have["language_model."]
        kind = "InstructBLIP-style (Ziya release B)" if reads else "BLIP-2"
        title = f"{kind}, whole" if whole else f"{kind} without a language model (Ziya release A)"
        return Layout(title, whole, reads)
    if have["model.layers."] or have["layers."]:
        raise CheckpointError(f"{where} is a language model alone: give it with --llama, and the vision part as source")
    tops = Counter(name.split(".")[0] for name in tensors)
    listed = ", ".join(f"{top} ({count})" for top, count in sorted(tops.items()))
    missing = ", ".join(prefix.rstrip(".") for prefix in _NEEDED if not have[prefix])
    raise CheckpointError(f"{where} has no layout that is known here: found {listed}; missing {missing}")


_NEEDED = ("vision_model.", "qformer.encoder.", "query_tokens", "language_projection.")
_PARTS = (*_NEEDED, "language_model.", "model.layers.", "layers.")


def _check_llama_arguments(layout: Layout, source: Path, llama: Path | None, base: Path | None) -> None:
    if layout.has_llama and llama is not None:
        raise CheckpointError(f"{source} has its own language model: leave --llama out")
    if not layout.has_llama and llama is None:
        raise CheckpointError(f"{source} has no language model: give its folder with --llama")
    if base is not None and llama is None:
        raise CheckpointError("--base goes with --llama: it is the model to which that one's delta weights are added")


def _plain_name(name: str) -> str | None:
    """Without buffers, and without the `model.` that some versions put around the whole model."""
    if name.endswith(("position_ids", "rotary_emb.inv_freq")):
        return None
    return re.sub(r"^model\.(?=vision_model|qformer|query_tokens|language_)", "", name)


def _vision_part(raw: Mapping[str, Any], tensors: Lazy, source: Path) -> VisionPart:
    config = Blip2VisionConfig.from_dict({**raw.get("vision_config", {}), "model_type": "blip_2_vision_model"})
    path = source / preprocessing.FILE_NAME
    # Release A's own code makes the processor from the ViT's size and CLIP's numbers.
    steps = Preprocessing.read(path) if path.is_file() else Preprocessing(config.image_size)
    return VisionPart(config.to_dict(), below(tensors, "vision_model."), steps)


def _qformer_part(raw: Mapping[str, Any], tensors: Lazy, source: Path, layout: Layout) -> QFormerPart:
    own = rename(tensors, _qformer_name)
    settings = {**raw.get("qformer_config", {}), "model_type": "blip_2_qformer"}
    settings["use_qformer_text_input"] = layout.reads_instruction
    if layout.reads_instruction:
        settings["vocab_size"] = own.sources[_WORDS].shape[0]
        settings["max_position_embeddings"] = own.sources[_POSITIONS].shape[0]
    settings["encoder_hidden_size"] = tensors.sources["vision_model.embeddings.class_embedding"].shape[-1]
    config = Blip2QFormerConfig.from_dict(settings).to_dict()
    tokenizer = _qformer_tokenizer(source).to_str() if layout.reads_instruction else None
    return QFormerPart(config, own, tokenizer)


def _qformer_name(name: str) -> str | None:
    """InstructBLIP keeps embeddings and their norm inside the Q-Former; a checkpoint has them as BLIP-2 does."""
    if name.startswith("qformer.embeddings."):
        rest = name.removeprefix("qformer.embeddings.")
        return f"qformer.{rest}" if rest.startswith("layernorm.") else f"embeddings.{rest}"
    return name if name == "query_tokens" or name.startswith("qformer.") else None


def _llama_part(
    raw: Mapping[str, Any], tensors: Lazy, source: Path, llama: Path | None, base: Path | None
) -> LlamaPart:
    projection = rename(tensors, lambda name: name if name.startswith("language_projection.") else None)
    if llama is not None:
        config, weights = read_llama(llama, base)
        return llama_part(config, weights, projection, llama, None)
    config = llama_config(raw.get("text_config", {}), f"{source / 'config.json'}: text_config")
    weights = llama_names(below(tensors, "language_model."))
    refuse_delta(weights, source)
    return llama_part(config, weights, projection, source, raw.get("image_token_index"))


def _qformer_tokenizer(source: Path) -> Tokenizer:
    folder = source / QFORMER_TOKENIZER
    if (folder / "tokenizer.json").is_file():
        tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return tokenizer
    if not (folder / "vocab.txt").is_file():
        raise CheckpointError(
            f"{source}: this Q-Former reads the instruction and needs its BERT tokenizer: "
            f"put tokenizer.json or vocab.txt into {folder}"
        )
    made: Tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)._tokenizer
    return made


def _silent(_message: str) -> None:
    pass
