"""Named tensors on disk: safetensors in one file or in shards with an index, read and written one by one.

A *table* maps each expected name to its shape; it is worked out from a config without allocating anything
(`ziya.model.layout`). Reading checks the files against the table before a byte of a tensor is read, and
refuses what is missing, foreign or of another shape by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ziya.checkpoint import CheckpointError

Shape = tuple[int, ...]
Table = Mapping[str, Shape]
FILE_NAME = "model.safetensors"
READABLE = 0o644
SHARD_BYTES = 4 << 30


@dataclass(frozen=True)
class Source:
    """A tensor that is not in memory: its shape, and how to read or compute it."""

    shape: Shape
    read: Callable[[], Tensor]


class Lazy(Mapping[str, Tensor]):
    """Tensors that are read or computed when asked for, so that 14 billion numbers need not fit in memory."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self.sources = dict(sources)

    def __getitem__(self, name: str) -> Tensor:
        return self.sources[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Names and shapes, without reading what is lazy."""
    if isinstance(tensors, Lazy):
        return {name: source.shape for name, source in tensors.sources.items()}
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def locate(folder: Path, file_name: str = FILE_NAME) -> dict[str, Path]:
    """The file that holds each tensor of a folder, sharded or not. Raises CheckpointError when there is none."""
    index = folder / f"{file_name}.index.json"
    if not index.is_file():
        path = folder / file_name
        return dict.fromkeys(shapes_of(path), path)
    files: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
    for file in sorted(set(files.values())):
        if Path(file).name != file:
            raise CheckpointError(f"{index} names a file outside its folder: {file}")
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder / file} is missing, but {index.name} names it")
    return {name: folder / file for name, file in files.items()}


def shapes_of(path: Path) -> dict[str, Shape]:
    """Names and shapes in one safetensors file, from its header."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def check(found: Table, expected: Table, where: Path | str) -> None:
    """Raises CheckpointError naming the first tensors that are missing, foreign or of another shape."""
    if missing := sorted(set(expected) - set(found)):
        raise CheckpointError(f"{where}: {_some(missing)} missing")
    if foreign := sorted(set(found) - set(expected)):
        raise CheckpointError(f"{where}: {_some(foreign)} not of this model")
    for name, shape in expected.items():
        if tuple(found[name]) != tuple(shape):
            raise CheckpointError(f"{where}: {name} has shape {list(found[name])}, expected {list(shape)}")


def read(
    folder: Path,
    expected: Table,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    file_name: str = FILE_NAME,
) -> dict[str, Tensor]:
    """All tensors of a folder, after `check`, cast to `dtype` on `device`. Raises CheckpointError."""
    places = locate(folder, file_name)
    files = sorted(set(places.values()))
    check({name: shape for path in files for name, shape in shapes_of(path).items()}, expected, folder)
    tensors: dict[str, Tensor] = {}
    for path in files:
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name in file.keys():  # noqa: SIM118  a safe_open handle is no mapping
                tensors[name] = file.get_tensor(name).to(dtype)
    return tensors


def lazy(places: Mapping[str, Path]) -> Lazy:
    """Readers for safetensors files found by `locate`."""
    known = {path: shapes_of(path) for path in set(places.values())}
    return Lazy({name: Source(known[path][name], partial(_read_one, path, name)) for name, path in places.items()})


def write(
    folder: Path, tensors: Mapping[str, Tensor], *, shard_bytes: int = SHARD_BYTES, file_name: str = FILE_NAME
) -> None:
    """Writes one safetensors file, or shards of at most `shard_bytes` with an index, holding one shard in memory."""
    stem = file_name.removesuffix(".safetensors")
    shards: list[list[str]] = []
    total, pending, size = 0, dict[str, Tensor](), 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        if pending and size + tensor.nbytes > shard_bytes:
            shards.append(_write_shard(folder, stem, len(shards), pending))
            pending, size = {}, 0
        # A copy where the tensor is a view: safetensors refuses views and names that share their bytes.
        pending[name] = tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
        total, size = total + tensor.nbytes, size + tensor.nbytes
    shards.append(_write_shard(folder, stem, len(shards), pending))
    if len(shards) == 1:
        (folder / f"{stem}.0").rename(folder / file_name)
    else:
        _write_index(folder, stem, shards, total)


def _write_shard(folder: Path, stem: str, number: int, tensors: dict[str, Tensor]) -> list[str]:
    path = folder / f"{stem}.{number}"
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(READABLE)  # safetensors makes it the owner's alone, but services run as other users
    return list(tensors)


def _write_index(folder: Path, stem: str, shards: list[list[str]], total: int) -> None:
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"{stem}-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{stem}.{number}").rename(folder / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _read_one(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def _some(names: list[str], at_most: int = 3) -> str:
    listed = ", ".join(names[:at_most])
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return f"tensor {listed}{more}" if len(names) == 1 else f"tensors {listed}{more}"
