"""Everything the tiny recipe needs, made from the npm packages: datasets, and the checkpoint to start from.

    pictures-train   the training styles, drawn at 64 px with their transparency, which augmentation fills
    pictures-check   EmojiOne's drawings of 150 seen concepts: known things drawn anew; choices are made on these
    pictures-test    Fluent 3D, a style that is never trained on, as its files are: the things that are trained on
    pictures-unseen  Fluent 3D's drawings of things that no training set has
    pairs-train      records with two training drawings
    words-train      dialogues without a picture
    initial          random weights and the tokenizers

All of it follows from the packages and the seed; what is held out does not even follow from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from training.data.writer import Sample, write_dataset
from training.tiny.emoji import EmojiData, Picture, Split
from training.tiny.fetch import install
from training.tiny.initial import Shape, write_initial
from training.tiny.pairs import pair_fields, word_fields
from training.tiny.pictures import as_png
from training.tiny.records import TEMPLATES, Scene, picture_fields

PICTURE_PX = 64
# As large as the test's files, so that a check picture takes the same road through the preprocessing.
CHECK_PX = 256
PAIRS = 4000
NAMES = [f"pictures-{part}" for part in ("train", "check", "test", "unseen")] + [
    "pairs-train",
    "words-train",
    "initial",
]


def build(
    folder: Path,
    *,
    packages: str | Path | None = None,
    seed: int,
    pairs: int = PAIRS,
    shape: Shape | None = None,
) -> list[str]:
    """Writes all of it into `folder`; returns the names. Without a node_modules npm installs one in `folder`/packages.

    Raises FileNotFoundError when a package or npm is missing.
    """
    data = EmojiData(Path(packages) if packages is not None else install(folder / "packages"))
    split, scene = data.split(), Scene([concept for concept in data.concepts if concept.seen])
    _write_pictures(folder / "pictures-train", split.train, scene, seed, PICTURE_PX)
    _write_pictures(folder / "pictures-check", split.check, scene, seed, CHECK_PX)
    for name, seen in (("pictures-test", True), ("pictures-unseen", False)):
        drawn = [picture for picture in data.test_pictures() if picture.concept.seen is seen]
        _write_pictures(folder / name, drawn, scene, seed, None)
    _write(folder / "pairs-train", _pairs(split, pairs, random.Random(f"{seed}/pairs")))
    words = word_fields(scene, random.Random(f"{seed}/words"))
    _write(folder / "words-train", ((fields, []) for fields in words))
    write_initial(folder / "initial", list(scene.seen), shape or Shape(), seed)
    return NAMES


def _write_pictures(folder: Path, pictures: Sequence[Picture], scene: Scene, seed: int, px: int | None) -> None:
    def samples() -> Iterator[Sample]:
        for picture in pictures:
            # Its own stream, so that one more style or drawing changes no other record.
            draw = random.Random(f"{seed}/{picture.style}/{picture.concept.unified}")
            yield picture_fields(picture, scene, draw), [picture.read() if px is None else as_png(picture, px)]

    _write(folder, samples())


def _pairs(split: Split, count: int, draw: random.Random) -> Iterator[Sample]:
    """Two drawings of different concepts; half of the pairs are of one category where it has two concepts."""
    by_group: dict[str, list[Picture]] = {}
    for picture in split.train:
        by_group.setdefault(picture.concept.group_en, []).append(picture)
    for _ in range(count):
        first = draw.choice(split.train)
        kin = by_group[first.concept.group_en] if draw.random() < 0.5 else split.train
        others = [picture for picture in draw.sample(kin, min(8, len(kin))) if picture.concept is not first.concept]
        second = others[0] if others else draw.choice(split.train)
        images = [as_png(first, PICTURE_PX), as_png(second, PICTURE_PX)]
        yield pair_fields(first.concept, second.concept, draw), images


def _write(folder: Path, samples: Iterator[Sample]) -> None:
    write_dataset(folder, samples, name=folder.name, templates=TEMPLATES)
