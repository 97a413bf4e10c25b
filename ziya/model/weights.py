"""Saving a checkpoint folder: three parts and a config.json with their fingerprints, whole or not at all.

Each part is given as tensors with its Hugging Face config, or as a folder of that part to take over as it
is (a training stage that leaves the ViT frozen copies vision/). Everything is checked against the config
before anything is written, and the folder replaces an older one in one step (`ziya.model.atomic`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ziya.checkpoint import CheckpointConfig, CheckpointError, fingerprint
from ziya.model import preprocessing
from ziya.model.atomic import replace_folder
from ziya.model.layout import (
    QFormerShape,
    Table,
    VisionShape,
    llama_table,
    projection_table,
    qformer_table,
    vision_table,
)
from ziya.model.llama import PROJECTION_FILE, llama_shape
from ziya.model.preprocessing import Preprocessing
from ziya.model.tensors import SHARD_BYTES, check, locate, shapes, shapes_of, write

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class VisionPart:
    """`config` is a Blip2VisionConfig as a dict, `tensors` are Blip2VisionModel.state_dict()."""

    config: Mapping[str, Any]
    tensors: Tensors
    preprocessing: Preprocessing


@dataclass(frozen=True)
class QFormerPart:
    """`config` is a Blip2QFormerConfig as a dict, `tensors` are QFormerModule.state_dict().

    `tokenizer` is the text of a tokenizer.json; needed when the Q-Former has a text branch.
    """

    config: Mapping[str, Any]
    tensors: Tensors
    tokenizer: str | None = None


@dataclass(frozen=True)
class LlamaPart:
    """`config` is a LlamaConfig as a dict, `tensors` are LlamaForCausalLM.state_dict() (no lm_head when tied).

    `projection` holds `language_projection.weight` and `.bias`; `tokenizer` is the text of a tokenizer.json;
    `files` are further files to keep beside it by name, such as tokenizer.model.
    """

    config: Mapping[str, Any]
    tensors: Tensors
    projection: Tensors
    tokenizer: str
    files: Mapping[str, bytes] = field(default_factory=dict)


def save_checkpoint(
    folder: Path,
    *,
    config: CheckpointConfig,
    vision: VisionPart | Path,
    qformer: QFormerPart | Path,
    llama: LlamaPart | Path,
    shard_bytes: int = SHARD_BYTES,
) -> CheckpointConfig:
    """Writes or replaces the checkpoint `folder` atomically; returns the config with the fingerprints.

    Raises CheckpointError, before anything is written, when a part does not fit the config.
    """
    _check_config(config)
    with replace_folder(folder) as draft:
        _put_vision(vision, draft / "vision", config)
        _put_qformer(qformer, draft / "qformer", config)
        _put_llama(llama, draft / "llama", config, shard_bytes)
        prints = {part: fingerprint(draft / part) for part in ("vision", "qformer", "llama")}
        complete = replace(config, fingerprints=prints)
        (draft / "config.json").write_text(complete.to_json(), "utf-8")
    return complete


def _check_config(config: CheckpointConfig) -> None:
    for name in ("queries", "vision_width", "qformer_width", "llm_width", "context_length"):
        if getattr(config, name) < 1:
            raise CheckpointError(f"config: {name} must be at least 1, not {getattr(config, name)}")


def _put_vision(part: VisionPart | Path, target: Path, config: CheckpointConfig) -> None:
    raw = _raw_config(part)
    shape = VisionShape.of(raw)
    _same("vision", "hidden_size", shape.hidden_size, "vision_width", config.vision_width)
    _check_tensors(part, vision_table(shape), "vision")
    if isinstance(part, Path):
        shutil.copytree(part, target)
        return
    _same("vision", "image_size", shape.image_size, "the preprocessing's size", part.preprocessing.size)
    _start(target, raw)
    (target / preprocessing.FILE_NAME).write_text(part.preprocessing.to_json(), "utf-8")
    write(target, part.tensors)


def _put_qformer(part: QFormerPart | Path, target: Path, config: CheckpointConfig) -> None:
    raw = _raw_config(part)
    shape = QFormerShape.of(raw)
    check_qformer(shape, config, "qformer")
    _check_tensors(part, qformer_table(shape, queries=config.queries, retrieval=config.retrieval), "qformer")
    if isinstance(part, Path):
        shutil.copytree(part, target)
        return
    if shape.use_qformer_text_input and part.tokenizer is None:
        raise CheckpointError("qformer: a text branch needs a tokenizer")
    _start(target, raw)
    if part.tokenizer is not None:
        (target / "tokenizer.json").write_text(part.tokenizer, "utf-8")
    write(target, part.tensors)


def _put_llama(part: LlamaPart | Path, target: Path, config: CheckpointConfig, shard_bytes: int) -> None:
    raw = _raw_config(part)
    shape = llama_shape(raw, "llama")
    _same("llama", "hidden_size", shape.hidden, "llm_width", config.llm_width)
    if config.context_length > shape.max_positions:
        raise CheckpointError(
            f"llama: max_position_embeddings is {shape.max_positions}, less than context_length {config.context_length}"
        )
    _check_tensors(part, llama_table(shape), "llama")
    table = projection_table(config.qformer_width, config.llm_width)
    if isinstance(part, Path):
        check(shapes_of(part / PROJECTION_FILE), table, part / PROJECTION_FILE)
        shutil.copytree(part, target)
        return
    check(shapes(part.projection), table, "llama projection")
    _start(target, raw)
    (target / "tokenizer.json").write_text(part.tokenizer, "utf-8")
    for name, data in part.files.items():
        (target / name).write_bytes(data)
    write(target, part.projection, file_name=PROJECTION_FILE)
    write(target, part.tensors, shard_bytes=shard_bytes)


def check_qformer(shape: QFormerShape, config: CheckpointConfig, where: str) -> None:
    """Raises CheckpointError when the Q-Former's own config contradicts the checkpoint's."""
    _same(where, "hidden_size", shape.hidden_size, "qformer_width", config.qformer_width)
    _same(where, "encoder_hidden_size", shape.encoder_hidden_size, "vision_width", config.vision_width)
    if shape.use_qformer_text_input != (config.qformer_reads_instruction or config.retrieval):
        raise CheckpointError(
            f"{where}: use_qformer_text_input is {shape.use_qformer_text_input}, which does not go with config.json's "
            f"qformer_reads_instruction {config.qformer_reads_instruction} and retrieval {config.retrieval}"
        )


def _same(where: str, name: str, value: int, field_name: str, expected: int) -> None:
    if value != expected:
        raise CheckpointError(f"{where}: {name} is {value}, but {field_name} is {expected}")


def _raw_config(part: VisionPart | QFormerPart | LlamaPart | Path) -> dict[str, Any]:
    if not isinstance(part, Path):
        return dict(part.config)
    path = part / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    raw: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return raw


def _check_tensors(part: VisionPart | QFormerPart | LlamaPart | Path, table: Table, where: str) -> None:
    if not isinstance(part, Path):
        check(shapes(part.tensors), table, where)
        return
    files = sorted(set(locate(part).values()))
    check({name: shape for path in files for name, shape in shapes_of(path).items()}, table, part)


def _start(folder: Path, config: Mapping[str, Any]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n", "utf-8")
