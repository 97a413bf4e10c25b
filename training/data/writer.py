"""Records and pictures to a dataset: tar shards with an index, the same bytes for the same samples.

Samples pass through one at a time, so a dataset may be larger than memory, and the folder appears when all of it
is on the disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np

from training.data.index import INDEX, File, Index, Members, Shard
from training.data.shards import Dataset
from training.errors import BadData
from ziya.model.atomic import replace_folder

Sample = tuple[Mapping[str, Any], Sequence[bytes]]
Templates = Mapping[str, Mapping[str, Sequence[str]]]
Labels = Mapping[str, Collection[str]]
_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpg", b"GIF87a": "gif", b"GIF89a": "gif", b"BM": "bmp"}


def write_dataset(
    folder: Path,
    samples: Iterable[Sample],
    *,
    name: str,
    shard_samples: int = 1000,
    templates: Templates | None = None,
) -> Dataset:
    """Writes (fields, files of the images) samples to `folder`, which may hold an older dataset.

    Raises BadData when there are no samples, when one cannot be written, and when `folder` holds something else.
    """
    if shard_samples < 1:
        raise ValueError(f"a shard must have at least one sample, not {shard_samples}")
    refuse_foreign(folder)
    with replace_folder(folder) as draft:
        written = list(write_shards(draft, samples, stem="shard", shard_samples=shard_samples))
        if not written:
            raise BadData(f"{folder}: there are no samples to write")
        wordings = {key: {lang: tuple(texts) for lang, texts in one.items()} for key, one in (templates or {}).items()}
        shards = tuple(shard for shard, _ in written)
        index = Index(name, shards, wordings, all_labels(labels for _, labels in written))
        (draft / INDEX).write_bytes(index.to_bytes())
    return Dataset.open(str(folder))


def write_shards(
    folder: Path, samples: Iterable[Sample], *, stem: str, shard_samples: int
) -> Iterator[tuple[Shard, Labels]]:
    """Shards named `stem` and a number in `folder`, without an index, each with its class names by label.

    For a part of a dataset, whose index somebody writes when all parts are there. Raises BadData.
    """
    source = iter(samples)
    for number in count():
        first = next(source, None)
        if first is None:
            return
        yield write_shard(folder / f"{stem}-{number:05d}", chain([first], islice(source, shard_samples - 1)))


def all_labels(labels: Iterable[Labels]) -> dict[str, tuple[str, ...]]:
    """The class names of several shards."""
    met: defaultdict[str, set[str]] = defaultdict(set)
    for some in labels:
        for label, classes in some.items():
            met[label].update(classes)
    return {label: tuple(sorted(classes)) for label, classes in sorted(met.items())}


def refuse_foreign(folder: Path) -> None:
    """Raises BadData when writing to `folder` would remove something that is not a dataset."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        Dataset.open(str(folder))
    except BadData as error:
        raise BadData(f"{folder} exists and is not a dataset; remove it or choose another folder ({error})") from error


def record_bytes(fields: Mapping[str, Any]) -> bytes:
    """The JSON member of a record. Raises ValueError for what JSON or UTF-8 cannot hold."""
    return json.dumps(fields, ensure_ascii=False, sort_keys=True, allow_nan=False).encode()


def image_suffix(image: bytes) -> str | None:
    """png, jpg, webp, gif or bmp by the file's first bytes; None for anything else."""
    if image.startswith(b"RIFF") and image[8:12] == b"WEBP":
        return "webp"
    return next((suffix for signature, suffix in _SIGNATURES.items() if image.startswith(signature)), None)


def write_shard(stem: Path, samples: Iterable[Sample]) -> tuple[Shard, Labels]:
    """One shard, `stem`.tar and `stem`.index.npz, with its class names by label. Raises BadData."""
    tar_path, index_path = stem.with_suffix(".tar"), stem.with_suffix(".index.npz")
    texts: list[tuple[int, int]] = []
    images: list[tuple[int, int]] = []
    first, met = [0], defaultdict[str, set[str]](set)
    with tarfile.open(tar_path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (fields, pictures) in enumerate(samples):
            where = f"{stem.name}:{number}"
            _note_labels(fields, met, where)
            texts.append(_append(tar, f"{number:07d}.json", _encode(fields, where)))
            for place, picture in enumerate(pictures):
                suffix = image_suffix(picture)
                if suffix is None:
                    raise BadData(f"{where}: image {place} is not a PNG, JPEG, WebP, GIF or BMP file")
                images.append(_append(tar, f"{number:07d}.{place}.{suffix}", picture))
            first.append(len(images))
    members = Members(*_columns(texts), np.array(first, np.int64), *_columns(images))
    index_path.write_bytes(members.to_bytes())
    return Shard(_describe(tar_path), _describe(index_path), len(texts), len(images)), all_labels([met])


def _append(tar: tarfile.TarFile, name: str, content: bytes) -> tuple[int, int]:
    """Adds a member; returns where its content lies. TarInfo's own defaults are time 0 and no owner."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(header, io.BytesIO(content))
    return offset, len(content)


def _encode(fields: Mapping[str, Any], where: str) -> bytes:
    try:
        return record_bytes(fields)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadData(f"{where}: the fields cannot be written as JSON: {error}") from error


def _note_labels(fields: Mapping[str, Any], labels: defaultdict[str, set[str]], where: str) -> None:
    given = fields.get("labels", {})
    if not isinstance(given, Mapping) or not all(isinstance(value, str) for value in given.values()):
        raise BadData(f"{where}: the field labels must give a class name a label")
    for label, value in given.items():
        labels[label].add(value)


def _columns(places: Sequence[tuple[int, int]]) -> tuple[Any, Any]:
    """Offsets and sizes."""
    table = np.array(places, np.int64).reshape(-1, 2)
    return np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1])


def _describe(path: Path) -> File:
    with path.open("rb") as file:
        return File(path.name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
