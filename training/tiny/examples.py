"""A few test pictures that travel with the checkpoint, for demonstrations.

They are drawn by a fixed seed from familiar kinds of things, never by what the model gets right; some show
concepts that the model has not been trained on. All are Fluent 3D (MIT).
"""

import json
import random
import re
from pathlib import Path

from training.tiny.emoji import Concept, EmojiData, Picture

SEED = 24
MAX_BYTES = 20_000
# What is drawn from, how many seen, how many unseen. A kind is the start of a subgroup's name.
KINDS = (
    (("animal-",), 5, 2),
    (("food-", "drink"), 5, 1),
    (("transport-",), 4, 1),
    (("sport", "game", "music", "musical-instrument"), 3, 1),
    (("clothing", "tool", "household", "light-video", "computer", "book-paper"), 3, 1),
)


def choose(pictures: tuple[Picture, ...]) -> list[Picture]:
    draw = random.Random(SEED)
    chosen: list[Picture] = []
    for prefixes, seen, unseen in KINDS:
        kind = [picture for picture in pictures if picture.concept.subgroup.startswith(prefixes)]
        small = [picture for picture in kind if len(picture.read()) < MAX_BYTES]
        for wanted, count in ((True, seen), (False, unseen)):
            candidates = [picture for picture in small if picture.concept.seen is wanted]
            chosen += draw.sample(candidates, min(count, len(candidates)))
    return chosen


def write(data: EmojiData, folder: Path) -> None:
    """Copies the pictures to `folder` with an `examples.json` that says what each one is."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for picture in choose(data.test_pictures()):
        concept = picture.concept
        file = f"{_slug(concept)}.webp"
        (folder / file).write_bytes(picture.read())
        entries.append(
            {
                "file": file,
                "name_en": concept.name_en,
                "name_zh": concept.name_zh,
                "category_en": concept.group_en,
                "category_zh": concept.group_zh,
                "seen": concept.seen,
            }
        )
    text = json.dumps(entries, ensure_ascii=False, indent=2)
    (folder / "examples.json").write_text(text + "\n", encoding="utf-8")


def _slug(concept: Concept) -> str:
    return re.sub(r"[^a-z0-9]+", "-", concept.name_en.lower()).strip("-")
