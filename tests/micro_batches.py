"""Micro-batches made by hand for tests of losses: random pictures and texts, and rows laid out one sample each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tests import tiny
from training.data.batch import Batch, Captions, Pictures, Rows
from training.learning import learnable
from training.lora import attach
from training.model import VisualLanguageModel
from training.objectives import Objectives
from training.recipe import Compute, Recipe, Source, Text

CLS, SEP = 2, 3
EXACT = Compute(precision="float32")


def recipe(*losses: str, **changes: object) -> Recipe:
    """A recipe with these losses whose Q-Former learns, in float32, with two sources."""
    plain = Recipe(
        stage="test",
        losses=dict.fromkeys(losses, 1.0),
        learn={"qformer": 1.0},
        data=(Source("here"), Source("there", language="zh")),
        compute=EXACT,
        text=Text(layout="pad"),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def objectives(
    folder: Path, how: Recipe, *, classes: dict[str, int] | None = None, dtype: torch.dtype = torch.float64
) -> Objectives:
    """What a run would train, without dropout; float64 tells rounding from error."""
    model = VisualLanguageModel.load(folder)
    if how.lora is not None and model.llama is not None:
        attach(model.llama, how.lora, how.seed)
    made = Objectives(model, how, classes or {}).to(dtype)
    learnable(made, how)
    return made.eval()


def captions(lengths: Sequence[int], seed: int = 0) -> Captions:
    """Random texts of so many tokens, `[CLS]` and `[SEP]` included."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(4, 40, (length,), generator=generator)
        ids[row, 0], ids[row, length - 1], mask[row, :length] = CLS, SEP, 1
    return Captions(ids, mask)


def rows(lengths: Sequence[int], learnt: int, *, queries: int = tiny.QUERIES, seed: int = 0) -> Rows:
    """One sample a row: its picture's visual tokens, then so many text tokens, the last `learnt` of them learnt."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), queries + max(lengths))
    segment = torch.zeros(shape, dtype=torch.long)
    ids, sample, position = torch.zeros_like(segment), torch.zeros_like(segment), torch.zeros_like(segment)
    visual, marks = torch.full_like(segment, -1), torch.zeros(shape, dtype=torch.bool)
    for row, length in enumerate(lengths):
        end = queries + length
        ids[row, queries:end] = torch.randint(3, 250, (length,), generator=generator)
        visual[row, :queries] = torch.arange(queries) + row * queries
        marks[row, end - learnt : end] = True
        segment[row, :end], sample[row, :end], position[row, :end] = 1, row, torch.arange(end)
    return Rows(ids, visual, position, segment, marks, sample % 2, sample)


def batch(size: int = 4, *, groups: Sequence[int] | None = None, dtype: torch.dtype = torch.float64) -> Batch:
    """A whole micro-batch of one process, with everything that any loss reads."""
    generator = torch.Generator().manual_seed(5)
    lengths = [5 + number % 3 for number in range(size)]
    return Batch(
        step=0,
        micro=0,
        first=0,
        total=size,
        source_B=torch.arange(size) % 2,
        position_B=torch.arange(100, 100 + size),
        valid_B=torch.ones(size, dtype=torch.bool),
        group_B=torch.tensor(groups or list(range(size))),
        pictures=Pictures(pixels_I3SS=torch.randn(size, 3, 32, 32, generator=generator, dtype=dtype)),
        captions=captions(lengths),
        rows=rows(lengths, learnt=3),
        instructions=captions([3 + number % 2 for number in range(size)], seed=1),
        labels={"concept": torch.arange(size) % 3},
    )


def piece(whole: Batch, rank: int, size: int) -> Batch:
    """What process `rank` of `size` has of a batch with one row and one picture a sample."""
    count = whole.total // size
    mine = slice(rank * count, (rank + 1) * count)

    def cut(x: Tensor) -> Tensor:
        return x[mine]

    texts = [Captions(cut(x.ids_BT), cut(x.mask_BT)) for x in (whole.captions, whole.instructions) if x is not None]
    assert whole.rows is not None
    assert whole.pictures is not None
    assert whole.pictures.pixels_I3SS is not None
    parts = {name: cut(x) for name, x in vars(whole.rows).items() if x is not None}
    shown = parts["visual_RT"] >= 0
    parts["visual_RT"] = torch.where(shown, parts["visual_RT"] - mine.start * tiny.QUERIES, -1)
    parts["sample_RT"] = (parts["sample_RT"] - mine.start).clamp(min=0)
    names = ("source_B", "position_B", "valid_B", "group_B")
    return replace(
        whole,
        first=mine.start,
        pictures=Pictures(pixels_I3SS=cut(whole.pictures.pixels_I3SS)),
        captions=texts[0],
        instructions=texts[1],
        rows=Rows(**parts),
        labels={name: cut(values) for name, values in (whole.labels or {}).items()},
        **{name: cut(getattr(whole, name)) for name in names},
    )
