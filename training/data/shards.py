"""A dataset: tar shards with an index, in a folder or behind a URL, of which any record is one read away.

    dataset = Dataset.open("https://example.org/birds")
    dataset.record(17).fields["caption"], dataset.image(17, 0)

Samples and images are numbered through all shards in order. Nothing is open until it is read, and every process
opens for itself, so that a dataset can be handed to workers however they are started.
"""

from __future__ import annotations

import json
import os
import tarfile
import weakref
from bisect import bisect_right
from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from training.data.index import INDEX, File, Index, Members, Shard, digest_of
from training.data.places import CACHE_BYTES, Place, place_of
from training.data.record import Record
from training.errors import BadData, BadSample

_OPEN_SHARDS = 64
_HEADER = tarfile.BLOCKSIZE


class Dataset:
    """See the module. Made by `Dataset.open`."""

    def __init__(self, place: Place, index: Index) -> None:
        self.place, self.index = place, index
        self.name = index.name
        self.digest = index.digest
        self.shard_sizes = tuple(shard.samples for shard in index.shards)
        self.image_count = index.images
        self._first_sample = (0, *accumulate(self.shard_sizes))
        self._first_image = (0, *accumulate(shard.images for shard in index.shards))
        # Bounded, since a dataset may have more shards than a process may have open files.
        self._members = lru_cache(_OPEN_SHARDS)(self._open_members)
        self._tar = lru_cache(_OPEN_SHARDS)(self._open_tar)

    @classmethod
    def open(cls, url: str, cache: Path | None = None, cache_bytes: int = CACHE_BYTES) -> Dataset:
        """`url` is a folder or any URL that fsspec knows; what comes from a URL is kept in `cache`. Raises BadData."""
        place = place_of(url, cache, cache_bytes)
        return cls(place, Index.from_bytes(place.read(INDEX), f"{place.url}/{INDEX}"))

    def __reduce__(self) -> tuple[Any, ...]:
        return Dataset, (self.place, self.index)

    def __len__(self) -> int:
        return self._first_sample[-1]

    @property
    def templates(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        """Wordings that the dataset brings along, by set and language."""
        return self.index.templates

    @property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        """The class names of each label, sorted."""
        return self.index.labels

    def key(self, item: int) -> str:
        """How an item is named in reports: `shard-00003:17` is 0000017.json in shard-00003.tar."""
        shard, number = self._find(item)
        return f"{self.index.shards[shard].tar.name.removesuffix('.tar')}:{number}"

    def record(self, item: int) -> Record:
        """Raises BadSample when it cannot be used, BadData when its shard cannot."""
        shard, number = self._find(item)
        members = self._members(shard)
        offset, size = int(members.json_offset_N[number]), int(members.json_size_N[number])
        text = self._read(item, f"{number:07d}.json", offset, size)
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadSample(self.key(item), f"wrong JSON: {error}") from error
        if not isinstance(fields, dict):
            raise BadSample(self.key(item), f"wrong JSON: a record is an object, not {type(fields).__name__}")
        images = int(members.image_first_N1[number + 1] - members.image_first_N1[number])
        return Record(self.key(item), fields, images)

    def image(self, item: int, number: int) -> bytes:
        """The file of one of the item's images, as it was packed. Raises BadSample, BadData."""
        shard, sample = self._find(item)
        members = self._members(shard)
        first, end = (int(place) for place in members.image_first_N1[sample : sample + 2])
        if not 0 <= number < end - first:
            raise BadSample(self.key(item), f"missing image: it has no image number {number}")
        offset, size = int(members.image_offset_I[first + number]), int(members.image_size_I[first + number])
        return self._read(item, f"{sample:07d}.{number}.", offset, size)

    def first_image(self, item: int) -> int:
        """The number of the item's first image among all images of the dataset."""
        shard, number = self._find(item)
        return self._first_image[shard] + int(self._members(shard).image_first_N1[number])

    def _find(self, item: int) -> tuple[int, int]:
        """The item's shard and its number in there."""
        if not 0 <= item < len(self):
            raise IndexError(f"{self.name} has no item {item}: it has {len(self)}")
        shard = bisect_right(self._first_sample, item) - 1
        return shard, item - self._first_sample[shard]

    def _read(self, item: int, name: str, offset: int, size: int) -> bytes:
        """A member's content. Its header comes along in the same read, and must bear the name it should."""
        shard, _ = self._find(item)
        data = os.pread(self._tar(shard).fileno, _HEADER + size, offset - _HEADER)
        if not data.startswith(name.encode()):
            raise BadSample(self.key(item), f"missing member: no {name} where the index says")
        if len(data) < _HEADER + size:
            raise BadSample(self.key(item), f"missing member: {name} is cut off")
        return data[_HEADER:]

    def _open_tar(self, shard: int) -> _Handle:
        return _Handle(self.place.open(self.index.shards[shard].tar))

    def _open_members(self, shard: int) -> Members:
        promised = self.index.shards[shard]
        where = f"{self.place.url}/{promised.members.name}"
        members = Members.from_bytes(self._whole(promised.members, where), where)
        if not _fits(members, promised):
            raise BadData(f"{where} is damaged: it does not fit its shard")
        return members

    def _whole(self, file: File, where: str) -> bytes:
        handle = _Handle(self.place.open(file))
        data = os.pread(handle.fileno, file.bytes, 0)
        if digest_of(data) != file.sha256:
            raise BadData(f"{where} is damaged: its SHA-256 is not the index's")
        return data


class _Handle:
    """An open file without a position, closed when the last reader lets go of it."""

    def __init__(self, fileno: int) -> None:
        self.fileno = fileno
        weakref.finalize(self, os.close, fileno)


def _fits(members: Members, shard: Shard) -> bool:
    """Whether all places lie within the tar and the counts are the index's."""
    first = members.image_first_N1
    if len(members.json_offset_N) != shard.samples or len(members.json_size_N) != shard.samples:
        return False
    if len(first) != shard.samples + 1 or first[0] != 0 or first[-1] != shard.images or np.any(np.diff(first) < 0):
        return False
    if len(members.image_offset_I) != shard.images or len(members.image_size_I) != shard.images:
        return False
    offsets = np.concatenate([members.json_offset_N, members.image_offset_I])
    sizes = np.concatenate([members.json_size_N, members.image_size_I])
    return bool(np.all(offsets >= _HEADER) and np.all(sizes >= 0) and np.all(offsets + sizes <= shard.tar.bytes))
