"""What a frozen encoder says of every picture of a dataset, computed once and then read from the disk.

    key.json          what the numbers depend on; written first, so that an interrupted build goes on only as itself
    shard-00000.npy   [images x views, N, D] of the dataset's shard 0; an image's views lie side by side
    shard-00000.json  size, SHA-256 and bad images of that file; written when it is whole
    manifest.json     all of the above in one; written last, by the process that completes the cache

Another dataset, encoder, preprocessing or augmentation gives other numbers: opening a cache names what differs and
refuses it. They are made by `training/feature_build.py`.

Legend: B images asked for, R rows of a file, N and D: patches and width of the ViT's features, or queries and width of
the Q-Former's tokens.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.errors import BadConfig, BadData, FeatureMismatch

Dtype = Literal["float32", "float16", "bfloat16"]
KEY, MANIFEST, VERSION = "key.json", "manifest.json", 1
_OPEN_SHARDS = 256
# A type, and as what it lies in the file: numpy has no bfloat16.
STORED: Mapping[str, tuple[torch.dtype, torch.dtype, str]] = {
    "float32": (torch.float32, torch.float32, "<f4"),
    "float16": (torch.float16, torch.float16, "<f2"),
    "bfloat16": (torch.bfloat16, torch.uint16, "<u2"),
}


@dataclass(frozen=True)
class FeatureKey:
    """What features depend on. `qformer` is None for the ViT's features and a fingerprint for the Q-Former's tokens.

    `pixels` is PixelSource.description(): preprocessing, augmentation with its strengths, and seed.
    """

    dataset: str
    vision: str
    qformer: str | None
    pixels: Mapping[str, Any]
    views: int = 1
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        if self.views < 1:
            raise BadConfig(f"images.views must be at least 1, not {self.views}")
        if self.dtype not in STORED:
            raise BadConfig(f"features are kept as {', '.join(STORED)}, not {self.dtype!r}")

    @property
    def name(self) -> str:
        """A name for the folder of these features, another for every other key."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{'features' if self.qformer is None else 'tokens'}-{digest[:16]}"


@dataclass(frozen=True)
class Shard:
    """A shard as its .json tells it; one without images has no file. `bad` has reasons by image number."""

    file: str
    bytes: int
    sha256: str
    images: int
    shape: tuple[int, ...]
    bad: Mapping[str, str]

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Shard:
        """Raises BadData."""
        try:
            return cls(**{**raw, "shape": tuple(raw["shape"])})
        except (TypeError, KeyError) as error:
            raise BadData(f"the features' list of files is damaged: {error}") from error

    def is_whole(self, folder: Path) -> bool:
        path = folder / self.file
        return self.images == 0 or (path.is_file() and path.stat().st_size == self.bytes)


def view_of(epoch: int, image: int, views: int) -> int:
    """Which view of an image an epoch sees: all of them in turn, and in one epoch not the same of every image."""
    mixed = (image + 1) * 0x9E3779B97F4A7C15 % (1 << 64) >> 33
    return (epoch + mixed) % views


class FeatureCache:
    """A complete cache. Made by `open`; nothing is mapped until it is read, so it is cheap to hand to a worker.

    `bad` gives, by image number, why a picture has no features.
    """

    def __init__(self, folder: Path, key: FeatureKey, shards: Sequence[Shard]) -> None:
        self.folder, self.key, self._shards = folder, key, tuple(shards)
        self._ends = tuple(accumulate(shard.images for shard in shards))
        self.bad = {int(number): reason for shard in shards for number, reason in shard.bad.items()}
        self.shape = next(shard.shape for shard in shards if shard.images)
        # Bounded, since a dataset may have more shards than a process may have open files.
        self._rows = lru_cache(_OPEN_SHARDS)(self._map)

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureCache, (self.folder, self.key, self._shards)

    @classmethod
    def open(cls, folder: Path, expected: FeatureKey) -> FeatureCache:
        """Raises FeatureMismatch when the cache is of something else, BadData when it is incomplete or damaged."""
        if not (folder / KEY).is_file():
            raise BadData(f"{folder} has no features: {KEY} is missing")
        count = check_key(folder, expected)
        if missing := [str(number) for number in range(count) if finished_shard(folder, number) is None]:
            raise BadData(f"{folder}: the features are not complete: of {count} shards missing: {', '.join(missing)}")
        if not (folder / MANIFEST).is_file():
            raise BadData(f"{folder}: the features are not complete: {MANIFEST} is missing")
        return cls(folder, expected, [Shard.of(one) for one in read_json(folder / MANIFEST)["files"]])

    def __len__(self) -> int:
        """How many images it knows, bad ones too."""
        return self._ends[-1]

    def valid(self, image: int) -> bool:
        return image not in self.bad

    def read(self, image: int, view: int) -> NDArray[np.float32]:
        """[N, D] of one view of an image; bfloat16 and float16 become the float32 of the same value."""
        features_ND: NDArray[np.float32] = self.batch([image], [view])[0].float().numpy()
        return features_ND

    def batch(self, images: Sequence[int], views: Sequence[int]) -> Tensor:
        """[B, N, D] in the type that is kept."""
        rows_BND = np.stack([self._row(image, view) for image, view in zip(images, views, strict=True)])
        return torch.from_numpy(rows_BND).view(STORED[self.key.dtype][0])

    def blank(self) -> Tensor:
        """[1, N, D] of zeros, for the place of an image without features."""
        return torch.zeros(1, *self.shape, dtype=STORED[self.key.dtype][0])

    def verify(self) -> None:
        """Reads everything. Raises BadData when a file is not what was written."""
        for shard in self._shards:
            if shard.images:
                with (self.folder / shard.file).open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                        raise BadData(f"{self.folder / shard.file} is damaged: its SHA-256 is not the manifest's")

    def _row(self, image: int, view: int) -> NDArray[Any]:
        if not 0 <= image < len(self) or not 0 <= view < self.key.views:
            raise IndexError(f"{self.folder} has no view {view} of image {image}: {len(self)} x {self.key.views}")
        shard = bisect_right(self._ends, image)
        first = self._ends[shard] - self._shards[shard].images
        row: NDArray[Any] = self._rows(shard)[(image - first) * self.key.views + view]
        return row

    def _map(self, shard: int) -> NDArray[Any]:
        rows_RND: NDArray[Any] = np.load(self.folder / self._shards[shard].file, mmap_mode="r", allow_pickle=False)
        return rows_RND


def check_key(folder: Path, expected: FeatureKey) -> int:
    """How many shards the features in `folder` have. Raises FeatureMismatch naming each field that differs."""
    raw = read_json(folder / KEY)
    if raw.get("version") != VERSION:
        raise FeatureMismatch(f"{folder}: the features have version {raw.get('version')!r}, not {VERSION}")
    there, wanted = _flat(raw["key"]), _flat(asdict(expected))
    names = [name for name in {**there, **wanted} if there.get(name) != wanted.get(name)]
    if names:
        listed = "; ".join(f"{name} is {there.get(name)!r} there, {wanted.get(name)!r} is wanted" for name in names)
        raise FeatureMismatch(f"{folder}: the features are of something else: {listed}")
    return int(raw["shards"])


def finished_shard(folder: Path, number: int) -> Shard | None:
    """What is known of a shard; None when it has not been finished."""
    path = folder / f"{shard_name(number)}.json"
    if not path.is_file():
        return None
    shard = Shard.of(read_json(path))
    return shard if shard.is_whole(folder) else None


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def read_json(path: Path) -> dict[str, Any]:
    """Raises BadData."""
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadData(f"{path} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise BadData(f"{path} is damaged: it is not an object")
    return raw


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, `pixels.preprocessing.size`; sequences as JSON has them."""
    flat: dict[str, Any] = {}
    for name, one in value.items():
        if isinstance(one, Mapping):
            flat.update(_flat(one, f"{prefix}{name}."))
        else:
            flat[prefix + name] = list(one) if isinstance(one, tuple) else one
    return flat
