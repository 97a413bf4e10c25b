"""All of ziya-tiny's results by one command: every task, both languages, on data that it was never trained on.

    python -m benchmarks.results [--at build/results] [--checkpoint checkpoints/ziya-tiny] [--packages FOLDER]

Fetches the data (npm, apt, pip; benchmarks/results_data.py), runs `ziya eval` on it and prints the tables that
docs/results.md holds, each with what always saying the commonest answer would score. Killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import machine, results_data
from cli.eval.plan import Plan
from cli.eval.report import as_dict, lines
from cli.eval.run import Found, evaluate
from training.scoring.evaluation import Result
from training.stage_folder import write_json

NAME = {"en": "What is this?", "zh": "这是什么？"}
CATEGORY = {"en": "What category does this belong to?", "zh": "这属于哪一类？"}


@dataclass(frozen=True)
class Part:
    """One run of `ziya eval`: its title, the tasks, and how our records are read and asked."""

    title: str
    data: str
    tasks: tuple[str, ...]
    reads: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None


ASKED = {"en": "{question}", "zh": "{question}"}
PARTS = (
    Part(
        "Names of seen things, Fluent 3D: as captions and exactly", "fluent-seen", ("caption", "exact"), "caption", NAME
    ),
    Part("Categories of seen things, Fluent 3D", "fluent-seen", ("exact",), "category", CATEGORY),
    Part("Categories of unseen things, Fluent 3D", "fluent-unseen", ("exact",), "category", CATEGORY),
    Part("Yes or no about 300 seen things, Fluent 3D", "fluent-seen", ("exact",), "verify", ASKED, 300 * 8),
    Part("One of four names, seen things, Fluent 3D", "fluent-seen", ("choice",), limit=500),
    Part("Retrieval of seen things, Fluent 3D", "fluent-seen", ("retrieval",)),
    Part("Captions of photographs and drawings, Tux Paint's stamps", "stamps", ("caption",), None, NAME),
    Part("Retrieval, Tux Paint's stamps", "stamps", ("retrieval",)),
    Part("Shapes and colours, easy-vqa", "shapes", ("vqa",), None, ASKED, 1000),
)


async def run(checkpoint: Path, at: Path, packages: Path) -> None:
    print(machine.describe(), flush=True)
    folders = {
        path.name: path
        for path in (*results_data.fluent(at, packages), results_data.stamps(at), results_data.shapes(at))
    }
    for number, part in enumerate(PARTS, 1):
        plan = Plan(
            target=str(checkpoint),
            tasks=part.tasks,
            data=(str(folders[part.data]),),
            store=at / "store",
            prompts=part.prompts,
            field=part.reads,
            limit=part.limit,
            top_k=16,
            threads=1,
        )
        found = await evaluate(plan, None)
        write_json(at / f"{number:02d}-{part.data}.json", as_dict(found, plan))
        print(f"\n### {part.title}\n", flush=True)
        for line in [*list(lines(found))[2:], *baselines(found)]:
            print(line, flush=True)


def baselines(found: Found) -> Iterator[str]:
    """What one answer to everything would score, and in retrieval a draw by lot."""
    for result in found.results:
        if result.task.score is None:
            ten = min(100.0, 1000 / len(result.items))
            yield f"by lot, {result.language}: R@1 {100 / len(result.items):.2f}, R@10 {ten:.1f}"
        elif not result.items[0].options:
            answer, scores = commonest(result)
            told = ", ".join(f"{name} {100 * value:.1f}" for name, value in scores.items())
            yield f"always {answer!r}, {result.language}: {told}"


def commonest(result: Result) -> tuple[str, Mapping[str, float]]:
    """The answer that most items have among theirs, and its scores."""
    counts = Counter(truth for item in result.items for truth in dict.fromkeys(item.truths))
    answer = min(counts, key=lambda truth: (-counts[truth], truth))
    score = result.task.score
    assert score is not None
    every = score(result.items, [answer] * len(result.items)).metrics
    return answer, {name: every[name] for name in result.task.gaps}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at", type=Path, default=Path("build/results"), help="folder for data, answers and results")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/ziya-tiny"))
    packages = Path("build/tiny/job/data/packages")
    parser.add_argument("--packages", type=Path, default=packages, help="where npm's packages are, or are put")
    given = parser.parse_args(arguments)
    asyncio.run(run(given.checkpoint, given.at, given.packages))


if __name__ == "__main__":
    main()
