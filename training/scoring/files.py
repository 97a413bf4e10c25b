"""Files of benchmarks: JSON and text with plain complaints, pictures by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.errors import BadData, BadSample
from training.scoring.item import Picture

# A name without an ending, as GQA's and COCO-CN's.
_ENDINGS = ("", ".jpg", ".png", ".jpeg", ".webp")


def read_text(path: Path) -> str:
    """Raises BadData."""
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadData(f"{path} is not UTF-8: {error}") from error


def read_json(path: Path) -> Any:
    """Raises BadData."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise BadData(f"{path} is not valid JSON: {error}") from error


def picture_file(folder: Path, name: str) -> Picture:
    """The picture's bytes when it is wanted, BadSample where there is no such file."""
    return Picture(_read, (folder, name))


def _read(folder: Path, name: str) -> bytes:
    for ending in _ENDINGS:
        path = folder / (name + ending)
        if path.is_file():
            return path.read_bytes()
    raise BadSample(name, f"missing image: there is no {folder / name}")
