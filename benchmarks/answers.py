"""How often the answers are right, on an art style that was never trained on, asked through the running stack.

    python -m benchmarks.answers [--packages NODE_MODULES] [--checkpoint checkpoints/ziya-tiny]

Every Fluent 3D picture is asked four questions over HTTP: its name and its category, in English and in Chinese,
greedily. A name is right when it is exactly the CLDR short name, a category when it is exactly the group's name
(case and surrounding space aside). Concepts that no training set contained are counted apart: their names cannot
be known, their category can. Beside the category stands what always answering the commonest one would score.
"""

from __future__ import annotations

import argparse
import asyncio
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks import machine
from benchmarks.callers import Ask, HttpCaller
from cli.stack import CHECKPOINT, Options, running_stack
from training.tiny.emoji import EmojiData, Picture

PACKAGES = Path("build/tiny/job/data/packages/node_modules")
CLIENTS = 8
QUESTIONS = {
    ("name", "en"): "What is this?",
    ("name", "zh"): "这是什么？",
    ("category", "en"): "What category does this belong to?",
    ("category", "zh"): "这属于哪一类？",
}


@dataclass(frozen=True)
class Answer:
    """One answer beside the truth."""

    picture: Picture
    kind: str
    language: str
    text: str

    @property
    def truth(self) -> str:
        concept = self.picture.concept
        return concept.name(self.language) if self.kind == "name" else concept.group(self.language)

    @property
    def right(self) -> bool:
        return self.text.strip().casefold() == self.truth.strip().casefold()


def as_png(picture: Picture) -> bytes:
    """The picture's own file, as PNG: what a person would upload, transparency included."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(picture.read())).save(stream, "PNG")
    return stream.getvalue()


async def ask_all(address: str, pictures: Iterable[Picture]) -> list[Answer]:
    """Four answers a picture, `CLIENTS` pictures at a time."""
    todo, answers = iter(pictures), list[Answer]()

    async def client() -> None:
        caller = HttpCaller(address)
        for picture in todo:
            image = as_png(picture)
            for (kind, language), question in QUESTIONS.items():
                timing = await caller.ask(Ask(question, image, max_tokens=48))
                answers.append(Answer(picture, kind, language, timing.text))
        await caller.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return answers


def report(answers: list[Answer]) -> str:
    rows = []
    for seen in (True, False):
        for kind, language in QUESTIONS:
            mine = [a for a in answers if a.picture.concept.seen is seen and (a.kind, a.language) == (kind, language)]
            right = sum(a.right for a in mine)
            commonest = Counter(a.truth for a in mine).most_common(1)[0][1] if mine else 0
            label = f"{kind}, {'Chinese' if language == 'zh' else 'English'}, {'seen' if seen else 'unseen'} concepts"
            share = f"{right / len(mine):.1%}" if mine else "-"
            rows.append([label, str(len(mine)), share, f"{commonest / max(1, len(mine)):.1%}"])
    return machine.table(["question", "pictures", "right", "always the commonest answer"], rows)


def mistakes(answers: list[Answer], count: int = 12) -> str:
    """Every n-th wrong name of a seen concept, so that the kind of mistake can be seen."""
    wrong = [a for a in answers if a.kind == "name" and a.picture.concept.seen and not a.right]
    chosen = sorted(wrong, key=lambda a: (a.picture.concept.index, a.language))[:: max(1, len(wrong) // count)]
    return machine.table(["truth", "answer"], [[a.truth, a.text] for a in chosen[:count]])


async def run(checkpoint: Path, packages: Path, limit: int | None) -> None:
    print(machine.describe(), flush=True)
    pictures = EmojiData(packages).test_pictures()[:limit]
    async with running_stack(Options(checkpoint, 0, 0), lambda _: None) as addresses:
        answers = await ask_all(addresses.http, pictures)
    print(f"\n{len(pictures)} pictures, {len(answers)} answers\n\n{report(answers)}\n\n{mistakes(answers)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--packages", type=Path, default=PACKAGES, help="node_modules with the drawings")
    parser.add_argument("--limit", type=int, help="only the first so many pictures")
    arguments = parser.parse_args()
    asyncio.run(run(arguments.checkpoint, arguments.packages, arguments.limit))


if __name__ == "__main__":
    main()
