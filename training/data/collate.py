"""From the draws of one step to the batches of one process: read, word, tokenise, decode, lay out.

All of it depends on (seed, position) of each sample and on nothing else, so a sample comes out the same whoever
handles it. What cannot be used is reported by name and keeps its place in the batch, marked invalid.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from training.data.batch import Batch, Captions, Pictures, Rows
from training.data.captions import Captioner
from training.data.pixels import PixelSource
from training.data.record import Draw, Record
from training.data.rows import Encoder, Piece, bucketed, layout
from training.data.shards import Dataset
from training.data.tasks import InTurn, caption_text, conversation, random_of
from training.data.templates import TEMPLATES
from training.errors import BadSample
from training.features import FeatureCache, view_of
from training.recipe import Recipe

Bad = tuple[str, str]
CONTRASTIVE = frozenset({"itc", "itm", "itg", "classify"})


@dataclass(frozen=True)
class Readers:
    """What a process reads samples with; each is None where the recipe does not need it.

    `datasets` and `caches` are in the order of the recipe's sources (sources of one dataset share an object).
    """

    datasets: Sequence[Dataset]
    caches: Sequence[FeatureCache | None]
    pixels: PixelSource | None = None
    encoder: Encoder | None = None
    captioner: Captioner | None = None
    reads_instruction: bool = False
    label_classes: Mapping[str, Mapping[str, int]] | None = None


@dataclass(frozen=True)
class _Sample:
    """One readable sample, before pixels."""

    draw: Draw
    record: Record
    caption: str
    piece: Piece | None
    instructions: tuple[str, ...]

    @property
    def images(self) -> int:
        return len(self.instructions)


class Place(NamedTuple):
    """Where a batch stands in the run: see Batch."""

    step: int
    micro: int
    first: int
    total: int


Made = tuple[list[Batch], list[Bad]]
_Wanted = tuple[int, _Sample | Draw, int]


class Collator:
    """Makes the batches of one process for one step. Cheap to send to a worker process."""

    def __init__(self, recipe: Recipe, readers: Readers) -> None:
        self.recipe, self.readers = recipe, readers
        self._needs_one_image = bool(CONTRASTIVE & set(recipe.losses))
        self._templates = [{**TEMPLATES, **dataset.templates} for dataset in readers.datasets]

    def batches(self, step: int, micros: Sequence[Sequence[Draw]], first: int, total: int) -> Made:
        """`micros` are this process's slices, each beginning at sample `first` of a micro-batch of `total`."""
        bad: list[Bad] = []
        samples = [[self._read(draw, bad) for draw in micro] for micro in micros]
        if self.recipe.text.layout == "bucket" and not self._needs_one_image:
            samples = _by_length(samples)
        places = (Place(step, number, first, total) for number in range(len(micros)))
        return [self._batch(place, micro, bad) for place, micro in zip(places, samples, strict=True)], bad

    def _read(self, draw: Draw, bad: list[Bad]) -> _Sample | Draw:
        """The sample without its pixels, or the bare draw when it is bad."""
        try:
            return self._word(draw, self.readers.datasets[draw.source].record(draw.item))
        except BadSample as error:
            bad.append((error.key, error.reason))
            return draw

    def _word(self, draw: Draw, record: Record) -> _Sample:
        source = self.recipe.data[draw.source]
        if self._needs_one_image and record.images != 1:
            raise BadSample(record.key, f"wrong number of images: {record.images}, the recipe's losses need one")
        caption, piece, instructions = "", None, ("",) * record.images
        if self.readers.captioner is not None and {"itc", "itm", "itg"} & set(self.recipe.losses):
            caption = caption_text(record, source, self._choosing(draw, "caption"))
        if self.readers.encoder is not None:
            spoken = conversation(record, source, self._templates[draw.source], self._choosing(draw, "wording"))
            piece = self.readers.encoder.piece(spoken, record.key)
            # A Q-Former that reads the instruction reads the text of the turn that shows the image, as in serving.
            shown = [(image, turn.text) for turn in spoken.turns for image in turn.images]
            texts = dict(shown)
            instructions = tuple(texts.get(image, "") for image in range(record.images))
        return _Sample(draw, record, caption, piece, instructions)

    def _choosing(self, draw: Draw, purpose: str) -> Random:
        if draw.turn is not None:
            return InTurn.of(self.recipe.seed, draw)
        return random_of(self.recipe.seed, draw.position, purpose)

    def _batch(self, place: Place, read: Sequence[_Sample | Draw], bad: list[Bad]) -> Batch:
        showing = self._showing(read)
        pictures, broken = self._pictures(read, showing, bad)
        samples = [None if isinstance(one, Draw) or place in broken else one for place, one in enumerate(read)]
        draws = [one if isinstance(one, Draw) else one.draw for one in read]
        captions = [sample.caption if sample else "" for sample in samples]
        has_captions = self.readers.captioner is not None and any(captions)
        return Batch(
            step=place.step,
            micro=place.micro,
            first=place.first,
            total=place.total,
            source_B=torch.tensor([draw.source for draw in draws]),
            position_B=torch.tensor([draw.position for draw in draws]),
            valid_B=torch.tensor([sample is not None for sample in samples]),
            group_B=torch.tensor([_group(sample, draw) for sample, draw in zip(samples, draws, strict=True)]),
            pictures=pictures,
            captions=self.readers.captioner.batch(captions) if has_captions and self.readers.captioner else None,
            rows=self._rows(read, samples, showing),
            instructions=self._instructions(read, showing),
            labels=self._labels(samples),
        )

    def _showing(self, read: Sequence[_Sample | Draw]) -> list[int]:
        """The place in the batch whose images each place shows: its own, or the first of the visit that shows the same.

        A Q-Former that reads the instruction makes other visual tokens for another one.
        """
        if self.recipe.text.layout != "share" or self._needs_one_image:
            return list(range(len(read)))
        first: dict[object, int] = {}
        reads = self.readers.reads_instruction
        return [
            first.setdefault((one.draw.visit, one.instructions if reads else None), place)
            if isinstance(one, _Sample)
            else place
            for place, one in enumerate(read)
        ]

    def _rows(
        self, read: Sequence[_Sample | Draw], samples: Sequence[_Sample | None], showing: Sequence[int]
    ) -> Rows | None:
        if self.readers.encoder is None:
            return None
        pieces, first_image, images = [], dict[int, int](), 0
        for place, (one, sample) in enumerate(zip(read, samples, strict=True)):
            if showing[place] == place:
                first_image[place] = images
                images += self._images(one)
            if sample is not None and sample.piece is not None:
                pieces.append((place, sample.draw.source, first_image[showing[place]], sample.piece))
        return layout(pieces, self.recipe.text, self.readers.encoder.queries)

    def _images(self, one: _Sample | Draw) -> int:
        """How many images a place of the batch has; contrastive losses need exactly one everywhere."""
        if self._needs_one_image:
            return 1
        return 0 if isinstance(one, Draw) else one.images

    def _pictures(
        self, read: Sequence[_Sample | Draw], showing: Sequence[int], bad: list[Bad]
    ) -> tuple[Pictures | None, set[int]]:
        """The images of all places that show their own, in order, and the places whose images cannot be used."""
        wanted = [
            (place, one, number)
            for place, one in enumerate(read)
            if showing[place] == place
            for number in range(self._images(one))
        ]
        if not wanted:
            return None, set()
        cached = self.readers.pixels is None
        pictures, reasons = self._cached(wanted) if cached else self._decoded(wanted)
        shown = Counter(showing)
        broken = {place for (place, _, _), reason in zip(wanted, reasons, strict=True) if reason is not None}
        # Once for every sample that they spoil, since it is samples that are counted.
        for (place, _, _), reason in zip(wanted, reasons, strict=True):
            bad += [reason] * shown[place] if reason is not None else []
        return pictures, {place for place, shows in enumerate(showing) if shows in broken}

    def _decoded(self, wanted: Sequence[_Wanted]) -> tuple[Pictures, list[Bad | None]]:
        assert self.readers.pixels is not None
        there = [(at, one, number) for at, (_, one, number) in enumerate(wanted) if isinstance(one, _Sample)]
        images = [(one.record.key, self._file(one, number)) for _, one, number in there]
        positions = [one.draw.visit for _, one, _ in there]
        pixels, failures = self.readers.pixels.pixels(images, positions)
        every = pixels.new_zeros(len(wanted), *pixels.shape[1:])
        reasons: list[Bad | None] = [None] * len(wanted)
        for (at, _, _), made, failure in zip(there, pixels, failures, strict=True):
            every[at] = made
            reasons[at] = (failure.key, failure.reason) if failure is not None else None
        return Pictures(pixels_I3SS=every), reasons

    def _file(self, one: _Sample, number: int) -> bytes:
        """An image's file; nothing where the shard does not give it, which the decoder then names."""
        try:
            return self._dataset(one.draw).image(one.draw.item, number)
        except BadSample:
            return b""

    def _cached(self, wanted: Sequence[_Wanted]) -> tuple[Pictures, list[Bad | None]]:
        """Features or tokens by their images' numbers; zeros where there is no sample."""
        made: list[Tensor] = []
        reasons: list[Bad | None] = []
        for _, one, number in wanted:
            draw = one if isinstance(one, Draw) else one.draw
            cache, image = self.readers.caches[draw.source], self._dataset(draw).first_image(draw.item) + number
            assert cache is not None
            usable = isinstance(one, _Sample) and cache.valid(image)
            view = view_of(draw.epoch, image, self.recipe.images.views)
            made.append(cache.batch([image], [view]) if usable else cache.blank())
            key = one.record.key if isinstance(one, _Sample) else ""
            reasons.append(
                (key, "bad image: it could not be decoded when the features were made") if not usable and key else None
            )
        stacked = torch.cat(made).float()
        if self.recipe.images.cache == "tokens":
            return Pictures(tokens_IQD=stacked), reasons
        return Pictures(features_IND=stacked), reasons

    def _dataset(self, draw: Draw) -> Dataset:
        return self.readers.datasets[draw.source]

    def _instructions(self, read: Sequence[_Sample | Draw], showing: Sequence[int]) -> Captions | None:
        """One text an image, where the Q-Former reads it."""
        if not self.readers.reads_instruction or self.readers.captioner is None:
            return None
        texts = [
            text
            for place, one in enumerate(read)
            if showing[place] == place
            for text in (one.instructions if isinstance(one, _Sample) else ("",) * self._images(one))
        ]
        return self.readers.captioner.instructions(texts) if texts else None

    def _labels(self, samples: Sequence[_Sample | None]) -> Mapping[str, Tensor] | None:
        """Class numbers; -1 where a record does not say, or says what the dataset does not list."""
        classes = self.readers.label_classes
        if classes is None:
            return None
        given = [sample.record.fields.get("labels", {}) if sample else {} for sample in samples]
        return {
            name: torch.tensor([numbers.get(labels.get(name), -1) for labels in given])
            for name, numbers in classes.items()
        }


def _group(sample: _Sample | None, draw: Draw) -> int:
    """A number that equals another sample's exactly when the two are the same thing."""
    name = sample.record.fields.get("group", sample.record.key) if sample else f"invalid {draw.position}"
    return int.from_bytes(hashlib.blake2b(str(name).encode(), digest_size=8).digest(), "big") >> 1


def _by_length(micros: Sequence[Sequence[_Sample | Draw]]) -> list[list[_Sample | Draw]]:
    """The same samples, those of like length together; what cannot be read has no length."""
    every = [one for micro in micros for one in micro]
    lengths = [len(one.piece.ids) if isinstance(one, _Sample) and one.piece else 0 for one in every]
    return [[every[place] for place in part] for part in bucketed(lengths, len(micros))]
