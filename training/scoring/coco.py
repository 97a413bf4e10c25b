"""Caption benchmarks as their owners publish them: COCO and NoCaps annotations, and Karpathy's splits.

    COCO      captions_val2014.json: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]};
              COCO-CN's and others' Chinese captions come in the same layout
    NoCaps    the same, with "domain" (in-domain, near-domain, out-domain) of each image, which becomes an item's kind
    Karpathy  dataset_coco.json, dataset_flickr30k.json: {"images": [{"filename", "filepath"?, "split", "imgid",
              "sentences": [{"raw"}]}]}; the split `test` unless another is asked for, "restval" belongs to train

An item's key is the picture's file name, so files in two languages about the same pictures can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.errors import BadData, BadSample
from training.scoring.files import picture_file
from training.scoring.item import Item, Read
from training.scoring.tasks import Asking


def coco_items(data: Mapping[str, Any], images: Path, asking: Asking, language: str) -> Iterator[Read]:
    """One item a picture that has captions, in the file's order. Raises BadData for another layout."""
    captions: dict[Any, list[str]] = {}
    try:
        for one in data["annotations"]:
            captions.setdefault(one["image_id"], []).append(" ".join(str(one["caption"]).split()))
        pictures = [(one["id"], str(one["file_name"]), str(one.get("domain") or "")) for one in data["images"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadData(f"these are not COCO captions: {error!r}") from error
    for number, name, kind in pictures:
        truths = tuple(filter(None, captions.get(number, ())))
        if not truths:
            yield BadSample(name, "missing text: the picture has no caption")
            continue
        yield replace(_item(name, truths, images, asking, language), kind=kind)


def karpathy_items(
    data: Mapping[str, Any], images: Path, asking: Asking, language: str, split: str | None
) -> Iterator[Read]:
    """One item a picture of the split. Raises BadData for another layout or a split that is not there."""
    wanted = {split or "test"} | ({"restval"} if split == "train" else set())
    there: set[str] = set()
    found = False
    for one in data["images"]:
        try:
            name, part = str(one["filename"]), str(one["split"])
            truths = tuple(" ".join(str(said["raw"]).split()) for said in one["sentences"])
        except (KeyError, TypeError) as error:
            raise BadData(f"this is not Karpathy's layout: {error!r}") from error
        there.add(part)
        if part in wanted:
            found = True
            where = images / str(one.get("filepath") or "")
            yield _item(name, truths, where if (where / name).is_file() else images, asking, language)
    if not found:
        raise BadData(f"there is no split {split or 'test'!r}, only {', '.join(sorted(there))}")


def _item(name: str, truths: tuple[str, ...], images: Path, asking: Asking, language: str) -> Item:
    picture = picture_file(images, name)
    return Item(name, language, truths, asking.question(language), (picture,), group=name)
