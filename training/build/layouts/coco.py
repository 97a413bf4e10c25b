"""COCO's captions as they are published: `annotations/captions_*.json` beside folders of pictures.

A row is a picture with all its captions. Where `instances_*.json` of the same split lies beside it, its boxes come
along: to describe the picture by, not to train on. Licences stand in the file, one a picture. (Layout: cocodataset.org,
"Data format".)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.build.layouts.groups import Groups
from training.build.layouts.json_elements import Elements, JsonFile
from training.build.layouts.layout import Layout, SourceRow, described
from training.data.inputs import checked
from training.errors import BadData, BadSample

_EMPTY = Elements()


class _Split:
    """One captions file, and its boxes."""

    def __init__(self, path: Path, root: Path, images: Path | None) -> None:
        self.file = JsonFile(path)
        self.images = self.file.lists.get("images", _EMPTY)
        self.captions = self.file.lists.get("annotations", _EMPTY)
        if not len(self.images) or not len(self.captions):
            raise BadData(f"{path} is not a file of COCO captions: it has no images or no annotations")
        self.by_image = Groups(int(one["image_id"]) for one in self.file.objects("annotations"))
        self.licences = {one.get("id"): _licence(one) for one in self.file.objects("licenses")}
        boxes = path.with_name(path.name.replace("captions_", "instances_"))
        self.boxes = _Boxes(boxes) if boxes != path and boxes.is_file() else None
        split = path.stem.removeprefix("captions_")
        given = [images] if images else []
        self.folders = [*given, root / "images" / split, root / split, root / "images", root]

    def inputs(self) -> list[dict[str, Any]]:
        return [described(file.path) for file in (self.file, self.boxes and self.boxes.file) if file]

    def read(self, number: int) -> SourceRow:
        key = f"{self.file.path.name}:images[{number}]"
        try:
            image = json.loads(self.file.element(self.images, number))
            identity, name = int(image["id"]), str(image["file_name"])
            said = [json.loads(self.file.element(self.captions, one)) for one in self.by_image.of(identity)]
            captions = [one["caption"].strip() for one in said]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadSample(key, f"wrong JSON: an image or a caption is not COCO's: {error!r}") from error
        if not captions:
            raise BadSample(key, "missing text: the picture has no caption")
        fields: dict[str, Any] = {"id": f"coco/{identity}", "caption": captions}
        if self.boxes is not None and (found := self.boxes.of(identity, image)):
            fields["boxes"] = found
        _, pictures = checked(key, fields, [found_in(self.folders, name)])
        return SourceRow(key, self.file.path.name, identity, fields, pictures, self.licences.get(image.get("license")))


class _Boxes:
    """instances_*.json: what stands where, in fractions of the picture's width and height."""

    def __init__(self, path: Path) -> None:
        self.file = JsonFile(path)
        self.places = self.file.lists.get("annotations", _EMPTY)
        self.by_image = Groups(int(one["image_id"]) for one in self.file.objects("annotations"))
        self.names = {one["id"]: str(one["name"]) for one in self.file.objects("categories")}

    def of(self, identity: int, image: Any) -> list[dict[str, Any]]:
        width, height = image.get("width"), image.get("height")
        if not width or not height:
            return []
        found = [json.loads(self.file.element(self.places, one)) for one in self.by_image.of(identity)]
        return [
            {"label": self.names.get(one["category_id"], "thing"), "box": _fractions(one["bbox"], width, height)}
            for one in found
        ]


def open_coco(path: Path, images: Path | None) -> Layout:
    """A captions file, or the folder that has `annotations/` (or the files themselves). Raises BadData."""
    files = captions_files(path) if path.is_dir() else [path]
    if not files:
        raise BadData(f"{path} has no captions_*.json, neither there nor in annotations/")
    root = path if path.is_dir() else path.parent
    root = root.parent if root.name == "annotations" else root
    splits = [_Split(file, root, images) for file in files]

    def read(number: int) -> SourceRow:
        for split in splits:
            if number < len(split.images):
                return split.read(number)
            number -= len(split.images)
        raise IndexError(number)

    inputs = [one for split in splits for one in split.inputs()]
    count = sum(len(split.images) for split in splits)
    return Layout("coco", count, read, tuple(inputs), has_licences=all(split.licences for split in splits))


def captions_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("captions_*.json"), *folder.glob("annotations/captions_*.json")])


def found_in(folders: Sequence[Path], name: str) -> Path:
    """The first that is there; where none is, the first at all, so that its name stands in the complaint."""
    return next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)


def _licence(one: Any) -> str:
    return " ".join(str(one[part]) for part in ("name", "url") if one.get(part))


def _fractions(box: Sequence[float], width: float, height: float) -> list[float]:
    """[x0, y0, x1, y1] of COCO's [x, y, width, height] in pixels."""
    x, y, w, h = box
    return [round(x / width, 3), round(y / height, 3), round((x + w) / width, 3), round((y + h) / height, 3)]
