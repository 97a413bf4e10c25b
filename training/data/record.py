"""What a dataset holds, in our own words, before any of it becomes tensors.

A *record* is one JSON object and its images. A text field may be a string, or a mapping of languages to
strings; one picture with texts in two languages is therefore one record. Fields that the tasks read:

    caption    "caption": text (or a list of texts: one is drawn, or each in turn: Source.samples_each)
    vqa        "vqa": {"question": text, "answer": text or list} (or a list of such)
    choice     "choice": {"question": text, "options": [text, …], "answer": index} (or a list)
    classify   "label": text
    ocr        "ocr": text
    dialogue   "dialogue": {"turns": [{"role": "user", "text": text, "images": [0]}, {"role": "assistant", "text": …}]}
               (or a list of such)
    group      "group": string; records with the same group are the same thing and never negatives of each other
    labels     "labels": {"concept": "…", …}: class names for the vision stage's heads
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ziya.prompt import Turn


@dataclass(frozen=True)
class Record:
    """`key` names it in reports (`shard-00003:17`), `images` is how many pictures lie beside the JSON object."""

    key: str
    fields: Mapping[str, Any]
    images: int


@dataclass(frozen=True)
class Draw:
    """One sample of a step: which source, which of its records, and its number in the whole run.

    All randomness of the sample (wording, augmentation, negatives) is seeded by (seed, position), so that it
    does not depend on which process handles it. `epoch` counts how often the source has been gone through.

    Samples of one record that a step holds one after another are a *visit*. `visit` is the position of its first
    sample, from which they all have their augmentation. `turn` is the number of this sample among those that the source
    takes from the record, None where it takes one.
    """

    source: int
    item: int
    epoch: int
    position: int
    visit: int
    turn: int | None = None


@dataclass(frozen=True)
class Conversation:
    """`turns` alternate and begin with the user's; image numbers are the record's. Assistant turns are learnt."""

    turns: tuple[Turn[int], ...]
