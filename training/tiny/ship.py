"""`python -m training.tiny.ship`: from a finished job to `checkpoints/ziya-tiny`, with its card, credits and examples.

The card's table is what the job's evaluation stages wrote; nothing is measured or chosen here.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from training.stage_folder import StageFolder
from training.tiny import examples
from training.tiny.emoji import EmojiData
from ziya.checkpoint import read_config
from ziya.model.atomic import replace_folder

HERE = Path(__file__).parent
RESULTS = "<!-- results -->"
LAST = "chat"
MOST_BYTES = 15_000_000
STAGES = ("pretrain", "align", "instruct", "chat")
# Metric as `evaluation.json` names it, without the language, and as people call it.
ROWS = (
    ("caption/{}.exact", "exact name"),
    ("classify.category/{}.exact", "category"),
    ("classify.category/{}#2.exact", "category, unseen things"),
    ("dialogue.chat/{}.exact", "last turn of a dialogue"),
    ("retrieval/{}.itc_i2t_r1", "picture to name, ITC"),
    ("retrieval/{}.itm_i2t_r1", "picture to name, ITM re-rank"),
    ("retrieval/{}.itc_t2i_r1", "name to picture, ITC"),
    ("retrieval/{}.itm_t2i_r1", "name to picture, ITM re-rank"),
)


class NotFinished(Exception):
    """The job has not come to its end, or what it left may not be shipped."""


def results(job: Path) -> str:
    """A Markdown table: a row a question and language, a column a stage. Raises NotFinished without an evaluation."""
    found = {stage: _metrics(job, stage) for stage in STAGES}
    lines = [f"| on Fluent 3D | {' | '.join(STAGES)} |", f"| --- |{' ---: |' * len(STAGES)}"]
    for metric, label in ROWS:
        for language, said in (("en", "English"), ("zh", "Chinese")):
            values = [found[stage].get(metric.format(language)) for stage in STAGES]
            cells = " | ".join("" if value is None else f"{value:.1%}" for value in values)
            lines.append(f"| {label}, {said} | {cells} |")
    return "\n".join(lines)


def _metrics(job: Path, stage: str) -> dict[str, float]:
    path = StageFolder(job / f"{stage}-test").evaluation
    if not path.is_file():
        raise NotFinished(f"{path} is missing: run the whole job first (ziya train run deploy/samples/tiny.yaml)")
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    metrics: dict[str, float] = found["metrics"]
    return metrics


def ship(job: Path, target: Path, packages: Path, most_bytes: int = MOST_BYTES) -> int:
    """Writes `target`, whole or not at all; returns its size in bytes. Raises NotFinished, also where it is larger."""
    model = StageFolder(job / LAST).model
    if not StageFolder(job / LAST).is_done:
        raise NotFinished(f"{job / LAST} is not done: run the whole job first")
    read_config(model)
    card = (HERE / "card.md").read_text("utf-8").replace(RESULTS, results(job))
    with replace_folder(target) as draft:
        shutil.copytree(model, draft, dirs_exist_ok=True)
        (draft / "README.md").write_text(card, "utf-8")
        shutil.copy(HERE / "NOTICE", draft)
        examples.write(EmojiData(packages), draft / "examples")
        size = sum(path.stat().st_size for path in draft.rglob("*") if path.is_file())
        if size > most_bytes:
            raise NotFinished(f"too large to ship: {size / 1e6:.1f} MB, at most {most_bytes / 1e6:.1f}")
    return size


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.tiny.ship", description=__doc__)
    parser.add_argument("--job", type=Path, default=Path("build/tiny/job"), help="the job's output folder")
    parser.add_argument("--target", type=Path, default=Path("checkpoints/ziya-tiny"))
    parser.add_argument("--packages", type=Path, help="node_modules [default: where the job's data stage put it]")
    how = parser.parse_args()
    try:
        size = ship(how.job, how.target, how.packages or how.job / "data" / "packages" / "node_modules")
    except NotFinished as error:
        parser.exit(1, f"{error}\n")
    print(f"{how.target}: {size / 1e6:.1f} MB\n\n{results(how.job)}")


if __name__ == "__main__":
    main()
