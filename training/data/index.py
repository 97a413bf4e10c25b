"""The table of contents of a dataset: `index.json`, and beside each tar shard where its members lie.

    index.json          {"format": "ziya-dataset", "version": 1, "name", "samples", "images", "templates", "labels",
                         "shards": [{"file", "bytes", "sha256", "samples", "images", "index": {"file", …}}, …]}
    shard-00000.tar     0000000.json 0000000.0.png 0000000.1.jpg 0000001.json …  numbered anew in every shard
    shard-00000.index.npz   offsets and sizes of those members, so that any of them is one read

Everything is named by size and SHA-256, and the digest of the whole is that of index.json's content: two datasets
with the same digest hold the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import BadData

FORMAT = "ziya-dataset"
VERSION = 1
INDEX = "index.json"


@dataclass(frozen=True)
class File:
    """A file of the dataset, as its index promises it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """One tar, the file that tells where its members lie, and how much is in it."""

    tar: File
    members: File
    samples: int
    images: int


@dataclass(frozen=True)
class Members:
    """Where the members of a tar lie, in bytes. N samples, I images; sample n has images first[n] to first[n + 1]."""

    json_offset_N: NDArray[np.int64]
    json_size_N: NDArray[np.int64]
    image_first_N1: NDArray[np.int64]
    image_offset_I: NDArray[np.int64]
    image_size_I: NDArray[np.int64]

    def to_bytes(self) -> bytes:
        """As a .npz; the same members give the same bytes."""
        buffer = io.BytesIO()
        np.savez(buffer, **vars(self))
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Members:
        """Raises BadData."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return cls(**{name: arrays[name].astype(np.int64, copy=False) for name in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise BadData(f"{where} is damaged: {error}") from error


@dataclass(frozen=True)
class Index:
    """What index.json says. `templates` are wordings by set and language, `labels` the class names by label."""

    name: str
    shards: tuple[Shard, ...]
    templates: Mapping[str, Mapping[str, tuple[str, ...]]]
    labels: Mapping[str, tuple[str, ...]]

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)

    @property
    def digest(self) -> str:
        """SHA-256 of the content, however it is spaced."""
        return hashlib.sha256(json.dumps(self._raw(), sort_keys=True).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        return (json.dumps(self._raw(), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

    def _raw(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "samples": self.samples,
            "images": self.images,
            "shards": [_raw_shard(shard) for shard in self.shards],
            "templates": {name: dict(wordings) for name, wordings in self.templates.items()},
            "labels": dict(self.labels),
        }

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Index:
        """Raises BadData naming `where` when this is no dataset's index, or one that contradicts itself."""
        try:
            raw = json.loads(data)
            if raw["format"] != FORMAT or raw["version"] != VERSION:
                raise BadData(f"{where}: format {raw['format']!r} version {raw['version']!r} is not {FORMAT} {VERSION}")
            index = cls(str(raw["name"]), tuple(map(_shard, raw["shards"])), _templates(raw), _labels(raw))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadData(f"{where} is not the index of a dataset: {type(error).__name__}: {error}") from error
        if (raw.get("samples"), raw.get("images")) != (index.samples, index.images):
            raise BadData(f"{where} is damaged: its numbers of samples and images are not the sums over its shards")
        if not index.samples:
            raise BadData(f"{where}: the dataset has no samples")
        return index


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _raw_shard(shard: Shard) -> dict[str, Any]:
    counts = {"samples": shard.samples, "images": shard.images}
    return {**_raw_file(shard.tar), **counts, "index": _raw_file(shard.members)}


def _raw_file(file: File) -> dict[str, Any]:
    return {"file": file.name, "bytes": file.bytes, "sha256": file.sha256}


def _shard(raw: Mapping[str, Any]) -> Shard:
    return Shard(_file(raw), _file(raw["index"]), _count(raw["samples"]), _count(raw["images"]))


def _file(raw: Mapping[str, Any]) -> File:
    name, sha256 = raw["file"], raw["sha256"]
    # Names become paths of a cache folder: an index from elsewhere must not reach out of it.
    if not isinstance(name, str) or not name or "/" in name or "\\" in name or name.startswith("."):
        raise ValueError(f"{name!r} cannot be the name of a shard")
    if not isinstance(sha256, str) or len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise ValueError(f"{sha256!r} is not a SHA-256")
    return File(name, _count(raw["bytes"]), sha256)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def _templates(raw: Mapping[str, Any]) -> dict[str, dict[str, tuple[str, ...]]]:
    sets = raw.get("templates") or {}
    return {name: {lang: _texts(texts) for lang, texts in wordings.items()} for name, wordings in sets.items()}


def _labels(raw: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {name: _texts(classes) for name, classes in (raw.get("labels") or {}).items()}


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{value!r} is not a list of texts")
    return tuple(value)
