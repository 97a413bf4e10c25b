"""Flickr30k's own files, and their Chinese kin: one caption a line, or a CSV.

    token files   results_20130124.token: `1000092795.jpg#0<tab>caption`; Flickr30k-CN and COCO-CN write
                  `1000092795.jpg#zhb#0 caption`, `COCO_val2014_000000000042#0 caption`: white space parts, too
    CSV           results.csv: `image_name| comment_number| comment`; captions.txt: `image,caption`;
                  flickr_annotations_30k.csv: columns raw (a JSON list), split, filename

Token files have no splits: `split` is then a file of names, one a line, as the Flickr30k splits are handed around.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from training.errors import BadData
from training.scoring.files import picture_file
from training.scoring.item import Item, Read
from training.scoring.tasks import Asking

_TOKEN = re.compile(r"^(?P<name>[^#\s]+)#(?:[^\s]+)\s+(?P<text>\S.*)$")
_NAME, _TEXT = ("image_name", "image", "filename"), ("comment", "caption", "raw")


def flickr_items(text: str, images: Path, asking: Asking, language: str, split: str | None) -> Iterator[Read]:
    """One item a picture, in the file's order. Raises BadData for another layout."""
    captions = _token(text) if _TOKEN.match(text.lstrip("\ufeff").split("\n", 1)[0]) else _csv(text, split)
    if split and (names := _named(Path(split))) is not None:
        captions = {name: said for name, said in captions.items() if Path(name).stem in names}
    for name, truths in captions.items():
        picture = picture_file(images, name)
        yield Item(name, language, tuple(truths), asking.question(language), (picture,), group=name)


def _token(text: str) -> Mapping[str, Sequence[str]]:
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), 1):
        if not line.strip():
            continue
        found = _TOKEN.match(line)
        if not found:
            raise BadData(f"line {number} is not `picture#number caption`: {line[:60]!r}")
        captions.setdefault(found["name"], []).append(" ".join(found["text"].split()))
    return captions


def _csv(text: str, split: str | None) -> Mapping[str, Sequence[str]]:
    mark = "|" if "|" in text.split("\n", 1)[0] else ","
    # Kaggle's results.csv quotes nothing, and has quotation marks in captions.
    file, quoting = io.StringIO(text.lstrip("\ufeff")), csv.QUOTE_NONE if mark == "|" else csv.QUOTE_MINIMAL
    rows = csv.reader(file, delimiter=mark, quoting=quoting, skipinitialspace=True)  # type: ignore[arg-type]
    head = [column.strip() for column in next(rows, [])]
    name = next((head.index(column) for column in _NAME if column in head), None)
    said = next((head.index(column) for column in _TEXT if column in head), None)
    if name is None or said is None:
        raise BadData(f"this is not a file of Flickr captions: its columns are {', '.join(head[:6])}")
    part = head.index("split") if "split" in head else None
    captions: dict[str, list[str]] = {}
    for row in rows:
        if len(row) > max(name, said) and (part is None or row[part] == (split or "test")):
            captions.setdefault(row[name].strip(), []).extend(_captions(row[said]))
    return captions


def _captions(cell: str) -> list[str]:
    texts = json.loads(cell) if cell.startswith("[") else [cell]
    return [" ".join(text.split()) for text in texts if text.strip()]


def _named(path: Path) -> set[str] | None:
    """The pictures that a file of names lists; None where `path` is no file."""
    return {Path(line.strip()).stem for line in path.read_text("utf-8").split()} if path.is_file() else None
