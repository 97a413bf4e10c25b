"""`pretrain`: its three losses against their formulae by hand, and a step as one saving after another is added.

    python -m benchmarks.pretraining [--steps 10] [--batch 16] [--rounds 2] [--checkpoint checkpoints/ziya-tiny]

No public trainer has this stage (transformers' retrieval model gives logits and no loss), so the peer is arithmetic:
the first step of the run is worked out again one pair at a time, without padding, with softmax and cross-entropy in
float64 numpy. Contrast: arXiv 2301.12597, section 3.2, with label smoothing as in LAVIS. Matching: a wrong image and a
wrong text each, drawn in proportion to exp(similarity). Captioning: BERT's head and the next token, smoothed.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import machine, random_checkpoint, training_data, training_job
from benchmarks.alternation import order
from benchmarks.training_job import FOLDER
from training.assemble import Assembly, Told, assemble
from training.data.batch import Batch, Captions
from training.data.loader import plans
from training.distributed import join
from training.job import load
from training.losses import captioning, matching
from training.model import there
from training.progress import Progress
from training.run import run_of

Array = NDArray[np.float64]
WARM = 2
# How a way is called, what of the ViT is cached, and in how many groups of like length captions go.
WAYS = (
    ("the ViT runs in every step", "none", 1),
    ("cached features", "features", 1),
    ("and captions in four groups of like length", "features", 4),
)


def by_hand(assembly: Assembly, batch: Batch) -> dict[str, float]:
    """ITC, ITM and ITG of a batch, one pair at a time."""
    assert batch.pictures is not None
    assert batch.captions is not None
    pictures = batch.pictures.pixels_I3SS
    assert pictures is not None
    objectives = assembly.objectives.eval()
    qformer = there(objectives.model.qformer, "qformer")
    features = [objectives.model.features(one[None]) for one in pictures]
    lengths = batch.captions.mask_BT.sum(1).tolist()
    texts = [ids[None, : int(length)] for ids, length in zip(batch.captions.ids_BT, lengths, strict=True)]
    shown = [_unit(qformer.vision_projection(qformer.query(one))[0]) for one in features]
    said = [_unit(qformer.embed_text(ids, torch.ones_like(ids))) for ids in texts]
    temperature = float(objectives.temperature.detach())
    scores = np.array([[max(query @ text.ravel() for query in image) for text in said] for image in shown])
    scores /= temperature
    smoothing, count = assembly.recipe.label_smoothing, len(texts)
    return {
        "itc": (_smoothed(scores, smoothing) + _smoothed(scores.T, smoothing)) / 2 / count,
        "itm": _matching(assembly, batch, features, texts, scores) / (matching.PAIRS * count),
        "itg": _captioning(assembly, features, texts),
    }


def _matching(assembly: Assembly, batch: Batch, features: list[Tensor], texts: list[Tensor], scores: Array) -> float:
    qformer = there(assembly.objectives.model.qformer, "qformer")
    noise = matching.noise(assembly.recipe.seed, batch.position_B.tolist(), len(texts)).numpy()
    lost = 0.0

    def pair(image: int, text: int, truth: int) -> float:
        ids = texts[text]
        logits = qformer.match(features[image], ids, torch.ones_like(ids))[0].double().numpy()
        return -float(_logs(logits)[truth])

    for own in range(len(texts)):
        others = [other for other in range(len(texts)) if batch.group_B[other] != batch.group_B[own]]
        image = max(others, key=lambda other: scores[other, own] + noise[0, own, other])
        text = max(others, key=lambda other: scores[own, other] + noise[1, own, other])
        lost += pair(own, own, 1) + pair(image, own, 0) + pair(own, text, 0)
    return lost


def _captioning(assembly: Assembly, features: list[Tensor], texts: list[Tensor]) -> float:
    objectives, smoothing = assembly.objectives, assembly.recipe.label_smoothing
    qformer, head = there(objectives.model.qformer, "qformer"), objectives.itg_head
    words = qformer.embeddings.word_embeddings.weight.detach().double().numpy()
    weight, bias = (x.detach().double().numpy() for x in (head.dense.weight, head.dense.bias))
    erf = np.vectorize(math.erf)
    lost, count = 0.0, 0
    for one, ids in zip(features, texts, strict=True):
        captions = Captions(ids, torch.ones_like(ids))
        _, text_1TD = captioning.decode(qformer, one, captions, objectives.model.start_token)
        hidden = text_1TD[0, :-1].double().numpy() @ weight.T + bias
        hidden = 0.5 * hidden * (1 + erf(hidden / math.sqrt(2)))
        hidden = (hidden - hidden.mean(1, keepdims=True)) / np.sqrt(hidden.var(1, keepdims=True) + head.norm.eps)
        for scores, truth in zip(hidden @ words.T, ids[0, 1:].tolist(), strict=True):
            logs = _logs(scores)
            lost -= (1 - smoothing) * float(logs[truth]) + smoothing * float(logs.mean())
            count += 1
    return lost / count


def _unit(x: Tensor) -> Array:
    value: Array = x.double().numpy()
    value /= np.linalg.norm(value, axis=-1, keepdims=True)
    return value


def _logs(scores: Array) -> Array:
    shifted: Array = scores - scores.max()
    return shifted - math.log(np.exp(shifted).sum())


def _smoothed(scores: Array, smoothing: float) -> float:
    lost = 0.0
    for own, row in enumerate(scores):
        logs = _logs(row)
        lost -= (1 - smoothing) * float(logs[own]) + smoothing * float(logs.mean())
    return lost


def job(folder: Path, how: argparse.Namespace, checkpoint: Path, cache: str, groups: int) -> Path:
    place = training_data.build(FOLDER, training_data.CAPTIONS, how.steps * how.batch)
    train: dict[str, Any] = {
        # A gentle start, so that all steps but the first are near each other in cost and the first is the checkpoint.
        "optimizer": {"steps": how.steps, "batch": how.batch, "warmupSteps": 2},
        "learn": {"qformer": 1.0},
        "images": {"augment": "none", "cache": cache},
        "text": {"captionTokens": 64, "captionGroups": groups},
        "compute": {"precision": "float32", "workers": 1},
    }
    data = [{"data": place, "task": "caption", "language": language} for language in ("en", "zh")]
    return training_job.write(folder, "pretrain", checkpoint=checkpoint, data=data, train=train)


def parity(path: Path, folder: Path, logged: dict[str, float]) -> str:
    config = load(path)
    run = run_of(config, config.stage("pretrain"), folder, 1)
    with join(600) as world, torch.no_grad():
        assembly = assemble(run.recipe, run.places, Told(world, Progress((), None)))
        plan = next(plans(assembly.mixture, assembly.mixture.start(), run.recipe.optimizer, world, 0))
        batch = assembly.collator.batches(0, plan.micros, plan.first, plan.total)[0][0]
        expected = by_hand(assembly, batch)
    rows = [
        [name, f"{logged[name]:.6f}", f"{value:.6f}", f"{abs(logged[name] - value):.1e}"]
        for name, value in expected.items()
    ]
    return machine.table(["loss of the first step", "run, float32", "by hand, float64", "difference"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--checkpoint", type=Path, help="default: 110 million random parameters")
    how = parser.parse_args()
    print(machine.describe(), flush=True)
    checkpoint = how.checkpoint or random_checkpoint.build(FOLDER / "checkpoint-retrieval", retrieval=True)
    number = training_job.fresh("pretrain-")
    found: list[list[list[dict[str, Any]]]] = [[] for _ in WAYS]
    for turn in range(how.rounds):
        for way in order(len(WAYS), turn):
            folder = FOLDER / f"pretrain-{way}-{number + turn}"
            path = job(folder, how, checkpoint, *WAYS[way][1:])
            training_job.run(training_job.arguments(path, "pretrain", folder))
            found[way].append(training_job.steps(folder / "pretrain"))
    first = FOLDER / f"pretrain-0-{number}"
    print(f"\n{parity(first / 'benchmark.yaml', first, found[0][0][0]['losses'])}\n", flush=True)
    middles = [statistics.median(line["seconds"] for run in runs for line in run[WARM:]) for runs in found]
    rows = [
        [name, f"{middle:.2f}", f"{how.batch / middle:.1f}", f"{middles[0] / middle:.2f}x"]
        for (name, _, _), middle in zip(WAYS, middles, strict=True)
    ]
    print(machine.table(["pretrain", "s a step, median", "samples/s", "ratio"], rows))


if __name__ == "__main__":
    main()
