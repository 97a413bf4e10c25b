"""Opening other projects' weight files: safetensors or PyTorch's, sharded or not, without reading them all.

Pickled files are opened with `weights_only` (a checkpoint must not run code) and mapped into memory, so that
a tensor costs memory only while it is copied.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ziya.checkpoint import CheckpointError
from ziya.model.tensors import FILE_NAME, Lazy, Source, lazy, locate

PICKLE_NAME = "pytorch_model.bin"


def open_weights(folder: Path) -> Lazy:
    """All tensors of a Hugging Face folder under their own names. Raises CheckpointError when it has none."""
    if (folder / FILE_NAME).is_file() or (folder / f"{FILE_NAME}.index.json").is_file():
        return lazy(locate(folder))
    index = folder / f"{PICKLE_NAME}.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        return Lazy({name: source for file in names for name, source in _unpickle(folder / Path(file).name).items()})
    if (folder / PICKLE_NAME).is_file():
        return Lazy(_unpickle(folder / PICKLE_NAME))
    raise CheckpointError(f"{folder} has no weights: neither {FILE_NAME} nor {PICKLE_NAME}, sharded or not")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError when it is not there or not one."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        raw = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} must hold an object")
    return raw


def rename(tensors: Lazy, new_name: Callable[[str], str | None]) -> Lazy:
    """The same tensors under new names; those whose new name is None are left out."""
    pairs = ((new_name(name), source) for name, source in tensors.sources.items())
    return Lazy({name: source for name, source in pairs if name is not None})


def below(tensors: Lazy, prefix: str) -> Lazy:
    """The tensors whose names begin with `prefix`, without it."""
    return rename(tensors, lambda name: name.removeprefix(prefix) if name.startswith(prefix) else None)


def _unpickle(path: Path) -> dict[str, Source]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    state = _load(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} is not a state dict: it must map names to tensors and nothing else")
    return {str(name): Source(tuple(value.shape), partial(_itself, value)) for name, value in state.items()}


def _load(path: Path) -> Any:
    try:
        # Files of PyTorch before 1.6 are not zip archives, and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path} cannot be read as plain tensors: {error}") from error


def _itself(tensor: Tensor) -> Tensor:
    return tensor
