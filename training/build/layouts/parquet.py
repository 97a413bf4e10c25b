"""Rows of Parquet files: one column of pictures (bytes, paths, or both as `datasets` writes them), the others fields.

Rows come in batches of a few dozen, the one that is open at a time; so files may be larger than memory, and reading
in order is reading once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from training.build.layouts.layout import Layout, SourceRow, described, in_our_words, take_licence
from training.data.inputs import check_fields, check_picture, dialogue_turns, entry
from training.errors import BadData, BadSample

_BATCH = 64
_IMAGE_COLUMNS = ("image", "images", "jpg", "jpeg", "png", "webp", "image_bytes", "image_path", "img", "picture")


class _Files:
    """Several files as one table, read forwards. A step back begins the row group again."""

    def __init__(self, paths: Sequence[Path]) -> None:
        import pyarrow  # noqa: PLC0415  slow to import, and only this layout needs it
        from pyarrow import parquet  # noqa: PLC0415

        try:
            self.files = [parquet.ParquetFile(path) for path in paths]
        except (OSError, pyarrow.ArrowException) as error:
            raise BadData(f"{paths[0].parent}: a file is not Parquet: {error}") from error
        self.paths = paths
        groups = [(file, group) for file, one in enumerate(self.files) for group in range(one.num_row_groups)]
        sizes = [self.files[file].metadata.row_group(group).num_rows for file, group in groups]
        self._groups, self._first = groups, (0, *accumulate(sizes))
        self._file_first = (0, *accumulate(file.metadata.num_rows for file in self.files))
        self._group, self._at = -1, 0
        self._batches: Iterator[Any] = iter(())
        self._batch: list[dict[str, Any]] = []

    @property
    def count(self) -> int:
        return int(self._first[-1])

    def columns(self) -> list[str]:
        return list(self.files[0].schema_arrow.names) if self.files else []

    def place(self, number: int) -> tuple[Path, int]:
        file = bisect_right(self._file_first, number) - 1
        return self.paths[file], number - self._file_first[file]

    def row(self, number: int) -> dict[str, Any]:
        group = bisect_right(self._first, number) - 1
        if group != self._group or number < self._at:
            file, inner = self._groups[group]
            self._group, self._at, self._batch = group, self._first[group], []
            self._batches = self.files[file].iter_batches(_BATCH, row_groups=[inner], use_threads=False)
        while number >= self._at + len(self._batch):
            self._at += len(self._batch)
            self._batch = next(self._batches).to_pylist()
        return dict(self._batch[number - self._at])


def open_parquet(path: Path, language: str, images: Path | None) -> Layout:
    """One file, or all of a folder in the order of their names. Raises BadData."""
    paths = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    files = _Files(paths)
    shown = [name for name in files.columns() if name in _IMAGE_COLUMNS]
    root = images or (path if path.is_dir() else path.parent)

    def read(number: int) -> SourceRow:
        source, place = files.place(number)
        key = f"{source.name}:{place}"
        row = files.row(number)
        given = [one for name in shown for one in _listed(row.pop(name))]
        licence = take_licence(row)
        bytes_given = [_content(one) for one in given]
        paths_given = [one for one in given if isinstance(one, str)]
        if any(content is None for content in bytes_given) and len(paths_given) != len(given):
            raise BadSample(key, "missing image: a picture must be bytes or a path, the same in all of a row")
        fields, pictures = _row(key, row, language=language, root=root, paths=paths_given, count=len(given))
        for name, content in zip(shown * len(given), bytes_given, strict=False):
            if content is not None:
                pictures = [*pictures, check_picture(key, content, name)]
        return SourceRow(key, source.name, place, fields, pictures, licence)

    return Layout("parquet", files.count, read, tuple(described(one) for one in paths))


def _row(
    key: str, row: Mapping[str, Any], *, language: str, root: Path, paths: Sequence[str], count: int
) -> tuple[Mapping[str, Any], Sequence[bytes]]:
    """Fields as of a JSON row; with paths their pictures too."""
    fields = in_our_words({name: value for name, value in row.items() if value is not None})
    said = fields.pop("conversations", None)
    if paths or said is None:
        extra = {} if said is None else {"conversations": said}
        made = entry(key, {**fields, **extra, "images": list(paths)}, language=language, images=root)
    else:
        made = {**fields, "dialogue": {"turns": dialogue_turns(key, said, count, language)}}, []
    check_fields(key, made[0])
    return made


def _listed(value: Any) -> list[Any]:
    """A column may hold one picture or a list; `datasets` writes {"bytes", "path"}."""
    values = value if isinstance(value, list) else [value]
    plain = [(one.get("bytes") or one.get("path")) if isinstance(one, Mapping) else one for one in values]
    return [one for one in plain if one is not None]


def _content(value: Any) -> bytes | None:
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else None
