"""Which layout a path is: told by what lies there, never by what is hoped; a person can say another."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from training.build.layouts.coco import captions_files, open_coco
from training.build.layouts.layout import Layout
from training.build.layouts.lines import open_json
from training.build.layouts.packed import open_packed
from training.build.layouts.parquet import open_parquet
from training.build.layouts.pictures import open_pictures
from training.build.layouts.tar import open_tars
from training.build.layouts.vqa import open_vqa, questions_files
from training.data.index import INDEX
from training.errors import BadData

Kind = Literal["folder", "json", "parquet", "tar", "dataset", "coco", "vqa"]
_PARQUET_MAGIC = b"PAR1"
_TAR_MAGIC = b"ustar"
_TAR_MAGIC_AT = 257


def open_layout(path: str, language: str, *, kind: Kind | None = None, images: str | None = None) -> Layout:
    """Raises BadData when there is nothing to read, or not of that kind."""
    folder = Path(images) if images else None
    kind = kind or recognised(path)
    if kind == "dataset":
        return open_packed(path)
    place = Path(path)
    if not place.exists():
        raise BadData(f"{path} is not there")
    if kind == "folder":
        return _with_rows(open_pictures(place, language), path)
    if kind == "json":
        return _with_rows(open_json(place, language, folder), path)
    if kind == "parquet":
        return _with_rows(open_parquet(place, language, folder), path)
    if kind == "tar":
        return _with_rows(open_tars(place, language), path)
    return _with_rows(open_coco(place, folder) if kind == "coco" else open_vqa(place, folder), path)


def recognised(path: str) -> Kind:
    """Raises BadData when there is nothing, or it is none of them."""
    place = Path(path)
    if "://" in path or (place / INDEX).is_file():
        return "dataset"
    if place.is_dir():
        return _of_folder(place)
    try:
        with place.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}") from error
    if start.startswith(_PARQUET_MAGIC):
        return "parquet"
    if start[_TAR_MAGIC_AT:].startswith(_TAR_MAGIC):
        return "tar"
    return _of_json(place, start)


def _of_folder(folder: Path) -> Kind:
    if captions_files(folder):
        return "coco"
    if questions_files(folder):
        return "vqa"
    if next(folder.glob("*.tar"), None) is not None:
        return "tar"
    if next(folder.rglob("*.parquet"), None) is not None:
        return "parquet"
    return "folder"


def _of_json(path: Path, start: bytes) -> Kind:
    """A JSON object over several lines is COCO's or VQAv2's; all else is rows."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text.startswith((b"{", b"[")):
        raise BadData(f"{path} is none of the layouts that are read: say which with --layout")
    if path.suffix.lower() != ".json" or text.startswith(b"["):
        return "json"
    if path.name.startswith("captions_"):
        return "coco"
    return "vqa" if "questions" in path.name else "json"


def _with_rows(layout: Layout, path: str) -> Layout:
    if not layout.count:
        raise BadData(f"{path} has no rows (read as {layout.kind}; --layout says another)")
    return layout
