"""`align` and `instruct` against transformers' BLIP-2 with Trainer and peft: useful tokens per second, rung by rung.

    python -m benchmarks.fine_tuning [--stages align align-5 instruct] [--steps 12] [--rounds 2] [--checkpoint DIR]

Both sides start from the same random weights (benchmarks/random_checkpoint.py), see the same samples in the same order,
train in float32 on the same threads, and have to arrive at the same losses. A useful token is a real text or visual
position: padding does not count, so a second is worth the same number of them on both sides. Figures are totals over
all steps after the first three, since steps differ in length. The rungs add one thing after another to our run:

    padded      one sample a row, as the peer does; but logits only where a token is learnt
    packed      several samples in a row that do not see one another
    cached      the frozen ViT's features come from disk; computing them once is not part of a step
    compiled    torch.compile on every layer

`align-5` is `align` with five captions a picture and language, where a step holds the ten samples of a picture side by
side, in the same order on both sides. Its rungs go on from `packed` with the layout `share`:

    shared      the samples of a picture have it, and the question that they begin with, once for all
    shared, cached; shared, compiled    the same two again, on top of it
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import machine, random_checkpoint, training_data, training_job
from benchmarks.hf_trainer import STEPS
from benchmarks.training_job import FOLDER
from ziya.checkpoint import read_config
from ziya.model.export import export

PEER = "transformers + Trainer + peft"
OPTIMIZER = {"accumulate": 1, "rate": 1e-4, "finalRate": 1e-5, "warmupSteps": 2}
WARM = 3
RUNGS: dict[str, dict[str, Any]] = {
    "padded": {"text": {"layout": "pad"}},
    "packed": {"text": {"layout": "pack"}},
    "cached": {"text": {"layout": "pack"}, "images": {"cache": "features"}},
    "compiled": {"text": {"layout": "pack"}, "images": {"cache": "features"}, "compute": {"compile": True}},
}
# The ten samples of a picture fit in a row of that width.
SHARE = {"layout": "share", "rowPositions": 512}
SHARED_RUNGS: dict[str, dict[str, Any]] = {
    "padded": RUNGS["padded"],
    "packed": RUNGS["packed"],
    "shared": {"text": SHARE},
    "shared, cached": {"text": SHARE, "images": {"cache": "features"}},
    "shared, compiled": {"text": SHARE, "images": {"cache": "features"}, "compute": {"compile": True}},
}


@dataclass(frozen=True)
class Case:
    """What is trained: a stage of this type, on sources of data, in rows of that many positions, in batches."""

    kind: str
    data: Sequence[Mapping[str, Any]]
    train: Mapping[str, Any]
    row: int
    batch: int = 16
    rungs: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: RUNGS)


def captions(data: str, **more: Any) -> list[dict[str, Any]]:
    return [{"data": data, "task": "caption", "language": language, **more} for language in ("en", "zh")]


LEARN = {"qformer": 1.0, "projection": 1.0}
CASES = {
    "align": Case("align", captions(training_data.CAPTIONS), {"learn": LEARN}, 256),
    "align-5": Case(
        "align",
        captions(training_data.MANY_CAPTIONS, samplesEach=training_data.MANY),
        {"learn": LEARN},
        256,
        batch=4 * training_data.MANY,
        rungs=SHARED_RUNGS,
    ),
    "instruct": Case(
        "instruct",
        [{"data": training_data.INSTRUCTIONS, "task": "dialogue"}],
        {"learn": {**LEARN, "llama": 10.0}, "lora": {"rank": 16, "alpha": 32, "dropout": 0.0}},
        512,
    ),
}


@dataclass
class Measured:
    """Loss of every step, and seconds of every step of every round after the warm ones."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    useful: list[int] = field(default_factory=list)

    @property
    def step(self) -> float:
        return statistics.mean(self.seconds)


@dataclass(frozen=True)
class Setting:
    name: str
    case: Case
    steps: int
    batch: int
    checkpoint: Path
    peer: Path


def job(folder: Path, how: Setting, rung: Mapping[str, Any]) -> Path:
    """A job of one stage. Rates are high enough for the losses to move. No source gives a record twice."""
    train: dict[str, Any] = {
        **how.case.train,
        "optimizer": {**OPTIMIZER, "steps": how.steps, "batch": how.batch},
        "text": {"rowPositions": how.case.row, **rung.get("text", {})},
        "images": {"augment": "none", **rung.get("images", {})},
        "compute": {"precision": "float32", "workers": 1, "checkpointActivations": False, **rung.get("compute", {})},
    }
    samples = how.steps * how.batch
    data = [
        {**one, "data": training_data.build(FOLDER, one["data"], -(-samples // one.get("samplesEach", 1)))}
        for one in how.case.data
    ]
    return training_job.write(folder, how.case.kind, checkpoint=how.checkpoint, data=data, train=train)


def ours(name: str, how: Setting, number: int, into: Measured) -> None:
    folder, stage = FOLDER / f"{how.name}-{name.replace(', ', '-')}-{number}", how.case.kind
    path = job(folder, how, how.case.rungs[name])
    training_job.run(training_job.arguments(path, stage, folder))
    steps = training_job.steps(folder / stage)
    into.losses = [line["losses"]["lm"] for line in steps]
    into.useful = [line["useful_tokens"] for line in steps]
    into.seconds += [line["seconds"] for line in steps][WARM:]


def peer(how: Setting, number: int, into: Measured) -> None:
    folder, stage = FOLDER / f"{how.name}-peer-{number}", how.case.kind
    path = job(folder, how, RUNGS["padded"])
    place = ["--stage", stage, "--model", str(how.peer), "--output", str(folder)]
    training_job.run(["benchmarks.hf_trainer", str(path), *place])
    steps = [json.loads(line) for line in (folder / stage / STEPS).read_text().splitlines()]
    into.losses = [line["loss"] for line in steps]
    into.seconds += [line["seconds"] for line in steps][WARM:]


def report(title: str, measured: Mapping[str, Measured]) -> str:
    theirs = measured[PEER]
    useful = statistics.mean(measured["padded"].useful[WARM:])
    rows = []
    for name, one in measured.items():
        differs = max(abs(a - b) / b for a, b in zip(one.losses, theirs.losses, strict=True))
        rate, ratio = useful / one.step, theirs.step / one.step
        rows.append([name, f"{one.step:.2f}", f"{rate:.0f}", f"{ratio:.2f}x", f"{differs:.1e}" if differs else "-"])
    head = [
        title,
        "s a step, mean",
        "useful tokens/s",
        "against the peer",
        "relative difference of losses",
    ]
    return machine.table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, help="samples a step; 16, and 20 of align-5")
    parser.add_argument("--checkpoint", type=Path, help="instead of the random one with a LLaMA of 110M parameters")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--stages", nargs="*", default=list(CASES), choices=list(CASES))
    every = list(dict.fromkeys([*RUNGS, *SHARED_RUNGS]))
    parser.add_argument("--rungs", nargs="*", default=every, choices=every)
    how = parser.parse_args()
    print(machine.describe(), flush=True)
    checkpoint = how.checkpoint or random_checkpoint.build(FOLDER / "checkpoint")
    config = read_config(checkpoint)
    weights = hashlib.sha256("".join(config.fingerprints.values()).encode()).hexdigest()[:12]
    peer_checkpoint = FOLDER / f"hf-{config.name}-{weights}"
    if not peer_checkpoint.exists():
        export(checkpoint, peer_checkpoint)
    for stage in how.stages:
        case = CASES[stage]
        setting = Setting(stage, case, how.steps, how.batch or case.batch, checkpoint, peer_checkpoint)
        measured = {name: Measured() for name in (PEER, *case.rungs) if name in (PEER, *how.rungs)}
        for _ in range(how.rounds):
            number = training_job.fresh(f"{stage}-")
            for name, into in measured.items():
                if name in case.rungs:
                    ours(name, setting, number, into)
                else:
                    peer(setting, number, into)
        print(f"\n{report(stage, measured)}", flush=True)


if __name__ == "__main__":
    main()
