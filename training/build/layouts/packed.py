"""Rows of a dataset of ours (`index.json` beside tar shards), in a folder or behind a URL."""

from __future__ import annotations

from training.build.layouts.layout import Layout, SourceRow, in_our_words, take_licence
from training.data.inputs import check_fields
from training.data.shards import Dataset


def open_packed(url: str) -> Layout:
    """Raises BadData."""
    dataset = Dataset.open(url)

    def read(number: int) -> SourceRow:
        record = dataset.record(number)
        fields = in_our_words(record.fields)
        licence = take_licence(fields)
        before = fields.pop("provenance", None)
        if licence is None and isinstance(before, dict):
            licence = before.get("licence")
        check_fields(record.key, fields)
        images = [dataset.image(number, image) for image in range(record.images)]
        shard, _, place = record.key.rpartition(":")
        return SourceRow(record.key, f"{dataset.name}/{shard}", int(place), fields, images, licence)

    return Layout("dataset", len(dataset), read, ({"dataset": dataset.name, "sha256": dataset.digest},))
