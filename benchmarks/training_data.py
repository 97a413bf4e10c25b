"""Pictures with bilingual captions, questions and dialogues to measure training on: random, but of likely lengths.

English words have two letters and so about a token each; Chinese characters are those that the random checkpoint's
tokenizer was trained on.

Captions have 6 to 25 words: one a picture in each language, or five in each, as COCO has them in English and
Flickr30k-CN in Chinese. Of the instructions, half are answered by a few words (as in VQA), a quarter by a
sentence or two, and a quarter are dialogues of up to four turns with answers of 20 to 80 words (as in LLaVA's data).
A text of this data means nothing; a figure that depends on lengths depends on these.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.data.writer import Sample, write_dataset

SIDE_PX = 256
CAPTIONS, MANY_CAPTIONS, INSTRUCTIONS = "captions", "many-captions", "instructions"
MANY = 5


def build(folder: Path, name: str, samples: int, seed: int = 0) -> str:
    """Writes the dataset of that name with so many records, unless it is there; returns its place."""
    place = (folder / f"{name}-of-{samples}").resolve()
    if not (place / "index.json").is_file():
        fields = {CAPTIONS: _captioned, MANY_CAPTIONS: _often_captioned, INSTRUCTIONS: _instructed}[name]
        write_dataset(place, _samples(fields, samples, random.Random(f"{seed}/{name}")), name=name)
    return str(place)


def _samples(fields: Any, samples: int, draw: random.Random) -> Iterator[Sample]:
    for number in range(samples):
        yield {"group": str(number), **fields(draw)}, [_picture(draw)]


def _captioned(draw: random.Random) -> dict[str, Any]:
    return {"caption": {"en": _english(draw, 6, 25), "zh": _chinese(draw, 6, 25)}}


def _often_captioned(draw: random.Random) -> dict[str, Any]:
    return {"caption": {name: [say(draw, 6, 25) for _ in range(MANY)] for name, say in _SAY.items()}}


def _instructed(draw: random.Random) -> dict[str, Any]:
    """One dialogue a record, which every task of an instruction mix comes down to."""
    kind = draw.random()
    if kind < 0.5:
        lengths = [(1, 4)]
    elif kind < 0.75:
        lengths = [(10, 40)]
    else:
        lengths = [(20, 80)] * draw.randint(1, 4)
    say = _english if draw.random() < 0.5 else _chinese
    turns = []
    for low, high in lengths:
        turns.append({"role": "user", "text": say(draw, 4, 16)})
        turns.append({"role": "assistant", "text": say(draw, low, high)})
    return {"dialogue": {"turns": turns}}


def _english(draw: random.Random, low: int, high: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return " ".join("".join(draw.choices(letters, k=2)) for _ in range(draw.randint(low, high)))


def _chinese(draw: random.Random, low: int, high: int) -> str:
    return "".join(chr(draw.randint(0x4E00, 0x6FFF)) for _ in range(draw.randint(low, high)))


def _picture(draw: random.Random) -> bytes:
    coarse_883 = np.random.default_rng(draw.randrange(1 << 32)).integers(0, 256, (8, 8, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(coarse_883).resize((SIDE_PX, SIDE_PX)).save(file, "JPEG")
    return file.getvalue()


_SAY = {"en": _english, "zh": _chinese}
