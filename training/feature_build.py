"""Computing a feature cache: every picture of a dataset, each view once, a file for each of the dataset's shards.

A shard's file appears when it is whole, so a build that was killed goes on with the shards that are missing. Several
processes share a build by taking every so many-th shard, without a word between them; who finds all shards there
after its own writes the manifest. A shard is encoded in the same batches whoever does it and when.

Legend: I images, S side, R rows (an image's view each), N and D as in `training/features.py`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.commit import sync, write_synced
from training.data.pixels import PixelSource
from training.errors import BadData, BadSample, FeatureMismatch, NonFinite
from training.features import KEY, MANIFEST, STORED, VERSION, FeatureKey, Shard, check_key, finished_shard, shard_name

Encode = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Image:
    """An image by its number in its item, and by its number in the dataset."""

    item: int
    of_item: int
    number: int


class Pictured(Protocol):
    """What a build needs of a dataset; `training.data.shards.Dataset` is one."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def image_count(self) -> int: ...
    @property
    def shard_sizes(self) -> Sequence[int]: ...
    def __len__(self) -> int: ...
    def key(self, item: int) -> str: ...
    def image(self, item: int, number: int) -> bytes: ...
    def first_image(self, item: int) -> int: ...


@dataclass(frozen=True)
class FeatureBuild:
    """One build, alike in all its processes. `encode` turns pixels [R, 3, S, S] into features [R, N, D].

    `key` must be of this dataset and these pixels; `batch` is about how many rows `encode` gets at a time.
    """

    folder: Path
    key: FeatureKey
    dataset: Pictured
    pixels: PixelSource
    encode: Encode
    batch: int = 64

    def run(self, *, rank: int = 0, world: int = 1, progress: Progress | None = None) -> None:
        """Computes what is missing of this process's share; when all processes have returned the cache is complete.

        `progress` is told how many of the share's images are done, and of how many. Raises FeatureMismatch when the
        folder has other features, BadData when the dataset has no images, NonFinite when features are not finite.
        """
        self._claim()
        mine = range(len(self.dataset.shard_sizes))[rank::world]
        finished = {shard: known for shard in mine if (known := finished_shard(self.folder, shard)) is not None}
        missing = {shard: self._images(shard) for shard in mine if shard not in finished}
        done = sum(known.images for known in finished.values())
        total = done + sum(map(len, missing.values()))
        report = progress if progress is not None else _silent
        report(done, total)
        for shard, images in missing.items():
            for count in self._write(shard, images):
                report(done + count, total)
            done += len(images)
        self._complete()

    def _claim(self) -> None:
        """Writes the key, or checks the one that is there."""
        if self.key.dataset != self.dataset.digest or self.key.pixels != self.pixels.description():
            raise FeatureMismatch(f"{self.folder}: the key is not of {self.dataset.name} and these pixels")
        if not self.dataset.image_count:
            raise BadData(f"{self.dataset.name} has no images to compute features of")
        if not (self.folder / KEY).is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            _put(self.folder / KEY, self._head())
        check_key(self.folder, self.key)

    def _head(self) -> dict[str, Any]:
        return {"version": VERSION, "key": asdict(self.key), "shards": len(self.dataset.shard_sizes)}

    def _images(self, shard: int) -> list[_Image]:
        """All images of a shard, in the order of their numbers."""
        dataset, before = self.dataset, sum(self.dataset.shard_sizes[:shard])
        items = range(before, before + dataset.shard_sizes[shard])
        firsts = [dataset.first_image(item) for item in items]
        after = dataset.first_image(items.stop) if items.stop < len(dataset) else dataset.image_count
        return [
            _Image(item, number, first + number)
            for item, first, end in zip(items, firsts, [*firsts[1:], after], strict=True)
            for number in range(end - first)
        ]

    def _write(self, shard: int, images: Sequence[_Image]) -> Iterator[int]:
        """The shard's file and what is known of it; yields how many images are done."""
        bad: dict[str, str] = {}
        draft = _Draft(self.folder / f"{shard_name(shard)}.npy", STORED[self.key.dtype][2])
        each = max(1, self.batch // self.key.views)
        try:
            for start in range(0, len(images), each):
                part = images[start : start + each]
                draft.add(self._block(part, bad), len(images) * self.key.views)
                yield start + len(part)
            known = draft.publish(len(images), bad)
        finally:
            draft.path.unlink(missing_ok=True)
        _put(self.folder / f"{shard_name(shard)}.json", asdict(known))

    def _block(self, images: Sequence[_Image], bad: dict[str, str]) -> NDArray[Any]:
        """[R, N, D] of some images, each view after view; zeros for a bad one, which is noted in `bad`."""
        views = self.key.views
        files = [file for image in images for file in [self._file(image, bad)] * views]
        numbers = [image.number for image in images for _ in range(views)]
        pixels_R3SS, failures = self.pixels.views(files, numbers, [*range(views)] * len(images))
        for number, failure in zip(numbers, failures, strict=True):
            if failure is not None:
                bad.setdefault(str(number), failure.reason)
        with torch.inference_mode():
            features_RND = self.encode(pixels_R3SS)
            if features_RND.ndim != 3 or len(features_RND) != len(numbers):
                raise ValueError(f"encode gave {tuple(features_RND.shape)} for {len(numbers)} pictures, not [R, N, D]")
            kept, stored, _ = STORED[self.key.dtype]
            rows_RND = features_RND.to(kept, copy=True)
            for row, number in enumerate(numbers):
                if str(number) in bad:
                    rows_RND[row] = 0
            self._check_finite(rows_RND, numbers)
            array_RND: NDArray[Any] = rows_RND.cpu().contiguous().view(stored).numpy()
        return array_RND

    def _file(self, image: _Image, bad: dict[str, str]) -> tuple[str, bytes]:
        try:
            return self.dataset.key(image.item), self.dataset.image(image.item, image.of_item)
        except BadSample as error:
            bad[str(image.number)] = error.reason
            return error.key, b""

    def _check_finite(self, rows_RND: Tensor, numbers: Sequence[int]) -> None:
        finite_R = torch.isfinite(rows_RND).flatten(1).all(1).tolist()
        if not all(finite_R):
            number = numbers[finite_R.index(False)]
            raise NonFinite(f"{self.dataset.name}: the features of image {number} are not finite in {self.key.dtype}")

    def _complete(self) -> None:
        """Writes the manifest once all shards are there, this process's or another's."""
        shards = [finished_shard(self.folder, shard) for shard in range(len(self.dataset.shard_sizes))]
        if all(shards):
            whole = [asdict(shard) for shard in shards if shard is not None]
            _put(self.folder / MANIFEST, {**self._head(), "files": whole})


class _Draft:
    """A .npy file written block by block under another name: a full disk is an error here, not a killed process."""

    def __init__(self, target: Path, kind: str) -> None:
        self._target, self._kind = target, kind
        # What a killed build has left; nobody else writes this shard.
        for leftover in target.parent.glob(f".{target.name}.*"):
            leftover.unlink(missing_ok=True)
        self.path = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}")
        self._digest = hashlib.sha256()
        self._shape: tuple[int, ...] = ()

    def add(self, block_RND: NDArray[Any], rows: int) -> None:
        """`rows` is how many there will be in all. Raises ValueError for a block of another shape than the first's."""
        if not self._shape:
            self._shape = block_RND.shape[1:]
            header = io.BytesIO()
            described = {"descr": self._kind, "fortran_order": False, "shape": (rows, *self._shape)}
            np.lib.format.write_array_header_1_0(header, described)  # type: ignore[no-untyped-call]
            self._append(header.getvalue())
        if block_RND.shape[1:] != self._shape:
            raise ValueError(f"encode gave features of {block_RND.shape[1:]} after {self._shape}")
        self._append(block_RND.tobytes())

    def _append(self, data: bytes) -> None:
        self._digest.update(data)
        with self.path.open("ab") as file:
            file.write(data)

    def publish(self, images: int, bad: Mapping[str, str]) -> Shard:
        """The file under its own name, on the disk. A shard without images has none."""
        size = 0
        if images:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
                size = os.fstat(file.fileno()).st_size
            self.path.replace(self._target)
            sync(self._target.parent)
        return Shard(self._target.name, size, self._digest.hexdigest(), images, self._shape, bad)


def _silent(done: int, total: int) -> None:
    pass


def _put(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON, whole or not at all; other processes may be writing the same."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    write_synced(draft, json.dumps(value, indent=1, sort_keys=True) + "\n")
    draft.replace(path)
    sync(path.parent)
