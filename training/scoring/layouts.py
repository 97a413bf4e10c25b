"""Which reader a file or folder of benchmark data needs, told by what lies there.

A layout may be named, or is found: a folder with index.json is a dataset of ours; any other folder, a JSONL file or a
JSON list are records; a JSON object tells by its keys; any other text is Flickr's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.data.index import INDEX
from training.data.shards import Dataset
from training.errors import BadConfig, BadData
from training.scoring.coco import coco_items, karpathy_items
from training.scoring.files import read_json, read_text
from training.scoring.flickr import flickr_items
from training.scoring.item import Read
from training.scoring.questions import gqa_items, science_items, vqa_items
from training.scoring.records import dataset_items, file_items
from training.scoring.tasks import Asking

LAYOUTS = ("coco", "nocaps", "karpathy", "flickr", "vqa", "gqa", "scienceqa", "dataset", "records")
_OWN = ("dataset", "records")


@dataclass(frozen=True)
class Source:
    """Where items are read from. `language` is that of texts which do not say it themselves; None asks for all.

    `images` is the folder that picture names start at (default: where `path` lies), `annotations` VQA's answers.
    """

    path: Path
    language: str | None = None
    layout: str | None = None
    images: Path | None = None
    annotations: Path | None = None
    split: str | None = None

    def items(self, asking: Asking, languages: Sequence[str]) -> Iterator[Read]:
        """In `languages`, of those that the source has. Raises BadData, BadConfig."""
        wanted = [self.language] if self.language else list(languages)
        layout = self.layout or found_layout(self.path)
        if layout in _OWN:
            return self._own(layout, asking, wanted)
        return self._foreign(layout, asking, wanted[0])

    def _own(self, layout: str, asking: Asking, languages: Sequence[str]) -> Iterator[Read]:
        if layout == "dataset":
            dataset = Dataset.open(str(self.path))
            return dataset_items(dataset, replace(asking, brought=dataset.templates), languages)
        return file_items(self.path, self.images, asking, languages)

    def _foreign(self, layout: str, asking: Asking, language: str) -> Iterator[Read]:
        images = self.images or self.path.parent
        if layout == "flickr":
            return flickr_items(read_text(self.path), images, asking, language, self.split)
        data = read_json(self.path)
        if not isinstance(data, Mapping):
            raise BadData(f"{self.path} is not of the layout {layout}: it is no JSON object")
        if layout in ("coco", "nocaps"):
            return coco_items(data, images, asking, language)
        if layout == "karpathy":
            return karpathy_items(data, images, asking, language, self.split)
        if layout == "gqa":
            return gqa_items(data, images, asking, language)
        if layout == "scienceqa":
            return science_items(data, images, asking, language, self.split)
        if layout == "vqa":
            return vqa_items(data, self._answers(), images, asking, language)
        raise BadConfig(f"there is no layout {layout!r}, only {', '.join(LAYOUTS)}")

    def _answers(self) -> Mapping[str, Any]:
        """VQA's annotations: given, or beside the questions under the name that the owners use."""
        name = self.path.name.replace("OpenEnded_", "").replace("questions", "annotations")
        path = self.annotations or self.path.with_name(name)
        if path == self.path or not path.is_file():
            raise BadConfig(f"there are no answers to {self.path.name}: name them with --annotations (not {path})")
        answers: Mapping[str, Any] = read_json(path)
        return answers


def found_layout(path: Path) -> str:
    """The layout of what lies at `path`. Raises BadData when there is nothing, or nothing known."""
    if not path.exists():
        raise BadData(f"{path} is not there")
    if path.is_dir():
        return "dataset" if (path / INDEX).is_file() else "records"
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if path.suffix == ".jsonl" or start.startswith(b"["):
        return "records"
    if not start.startswith(b"{"):
        return "flickr"
    try:
        data = read_json(path)
    except BadData:
        return "records"  # several objects: lines
    return _of_object(path, data)


def _of_object(path: Path, data: Mapping[str, Any]) -> str:
    if "questions" in data:
        return "vqa"
    if "images" in data:
        return "coco" if "annotations" in data else "karpathy"
    first = next(iter(data.values()), None)
    if isinstance(first, Mapping):
        if "imageId" in first:
            return "gqa"
        if "choices" in first:
            return "scienceqa"
    if data.keys() & {"image", "images", "caption", "vqa", "conversations"}:
        return "records"  # a JSONL file of one line
    raise BadData(f"{path} is in no known layout; name one: {', '.join(LAYOUTS)}")
