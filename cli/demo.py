"""`ziya demo`: a stack of its own on free ports, real questions about pictures that were not trained on, and stop.

The checkpoint brings the pictures: `examples/` with `examples.json`, a list of `{"file", "name_en", "name_zh",
"category_en", "category_zh", "seen"}`; `seen` says whether the thing itself (never this picture) was in training.
A wrong answer is counted, not hidden, and does not fail the command; a stack that fails does.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.cells import cell_len, set_cell_size

from cli.chat import Question, Report, image_url, stream_answer
from cli.stack import CHECKPOINT, Options, run, running_stack
from cli.text import CommandError, say

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

QUESTIONS = (
    ("name_zh", "这是什么？"),
    ("name_en", "What is this?"),
    ("category_zh", "这属于哪一类？"),
    ("category_en", "What category does this belong to?"),
)
WIDTHS = (22, 36, 22)  # of picture, question and answer, in terminal cells
ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Case:
    """One question about one picture, and the true label."""

    picture: Path
    question: str
    truth: str


@app.command()
def demo(
    checkpoint: Annotated[Path, typer.Option(help="Folder of the checkpoint to show.")] = CHECKPOINT,
    pictures: Annotated[int, typer.Option(help="How many of its example pictures to ask about.", min=1)] = 4,
) -> None:
    """Start a stack on free ports, ask about pictures that were not trained on, stop it.

    Prints picture, question, the answer as it streams, and the true label.
    """
    cases = list(load_cases(checkpoint, pictures))
    if not run(_demo(Options(checkpoint, http_port=0, grpc_port=0), cases)):
        sys.exit(130)


def load_cases(checkpoint: Path, pictures: int) -> Iterator[Case]:
    """The questions about pictures of things that training knew, of as many categories as there are.

    Raises CommandError when the checkpoint has no examples.
    """
    folder = checkpoint / "examples"
    try:
        entries: list[dict[str, Any]] = json.loads((folder / "examples.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CommandError(f"{checkpoint} has no examples to show: {error}") from error
    met: Counter[str] = Counter()
    ranked: list[tuple[int, int, dict[str, Any]]] = []
    for entry in (entry for entry in entries if entry["seen"]):
        ranked.append((met[entry["category_en"]], len(ranked), entry))
        met[entry["category_en"]] += 1
    for _, _, entry in sorted(ranked)[:pictures]:
        for label, question in QUESTIONS:
            yield Case(folder / entry["file"], question, entry[label])


async def _demo(options: Options, cases: Sequence[Case]) -> None:
    right = 0
    async with running_stack(options, say) as addresses:
        say(f"ready   {addresses.url}\n")
        _row("picture", "question", "answer", "true label")
        _row("-" * 20, "-" * 34, "-" * 20, "-" * 18)
        async with httpx.AsyncClient(base_url=addresses.url, timeout=120.0, trust_env=False) as client:
            for case in cases:
                right += await _ask(client, case)
        say(f"\n{right} of {len(cases)} answers are exactly the true label. Stopping…")


async def _ask(client: httpx.AsyncClient, case: Case) -> bool:
    for text, width in zip((case.picture.stem, case.question), WIDTHS, strict=False):
        say(_cell(text, width), end="")
    question = Question([image_url(str(case.picture))], case.question, {"temperature": 0, "max_tokens": ANSWER_TOKENS})
    report = Report()
    async for piece in stream_answer(client, question, report):
        say(piece.replace("\n", " "), end="")
    right = same(report.answer, case.truth)
    space = WIDTHS[2] - cell_len(report.answer)
    gap = " " * space if space > 0 else "\n" + " " * sum(WIDTHS)
    say(f"{gap}{case.truth} {'✓' if right else '✗'}")
    return right


def same(answer: str, truth: str) -> bool:
    """Equal but for case, outer space and a full stop."""
    plain = [text.strip().rstrip(".。").casefold() for text in (answer, truth)]
    return plain[0] == plain[1]


def _row(*texts: str) -> None:
    *head, last = texts
    say("".join(_cell(text, width) for text, width in zip(head, WIDTHS, strict=True)) + last)


def _cell(text: str, width: int) -> str:
    """Exactly `width` terminal cells (a Chinese character takes two), the last of them blank."""
    return set_cell_size(text, width - 1) + " "
