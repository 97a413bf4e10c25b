"""Muon's update of ziya-tiny's matrices: one by one or those of a shape together, with threads that sleep or spin.

    python -m benchmarks.muon [--rounds 5]

A training step of a small model spends much of its time here, in products too small for two cores each. How long an
idle thread of OpenMP's spins before it sleeps is read once, when a process begins: so each setting has its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks import machine, quiet
from benchmarks.alternation import order
from training.local import ENVIRONMENT
from training.model import VisualLanguageModel
from training.muon import Muon

CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "ziya-tiny"
PARTS, WAYS = ("vision", "qformer"), ("one by one", "together")
WAITS = {"sleep": {"OMP_WAIT_POLICY": "PASSIVE"}, "spin": {"GOMP_SPINCOUNT": ENVIRONMENT["GOMP_SPINCOUNT"]}}
UPDATES = 15


def matrices(part: str) -> list[nn.Parameter]:
    """Those of the transformer layers of a part."""
    model = VisualLanguageModel.load(CHECKPOINT, parts=(part,))
    layers = model.vision.encoder.layers if model.vision else model.qformer.qformer.encoder.layer  # type: ignore[union-attr]
    return [weight for weight in layers.parameters() if weight.ndim == 2]


def updates(part: str) -> dict[str, float]:
    """Median milliseconds of an update, each way."""
    weights = matrices(part)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    ways = [[Muon([weight], lr=1e-3) for weight in weights], [Muon(weights, lr=1e-3)]]
    times: list[list[float]] = [[], []]
    for number in range(UPDATES):
        for way in order(len(ways), number):
            began = time.perf_counter()
            for optimizer in ways[way]:
                optimizer.step()
            times[way].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(found[1:]) for name, found in zip(WAYS, times, strict=True)}


def in_a_process(wait: str, threads: int) -> dict[str, dict[str, float]]:
    bare = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = {**bare, **WAITS[wait], "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.muon", "--once"]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, dict[str, float]] = json.loads(told.stdout)
    return found


def rows(found: dict[str, list[dict[str, dict[str, float]]]]) -> Sequence[list[str]]:
    made = []
    for part in PARTS:
        first = 0.0
        for wait in WAITS:
            for way in WAYS:
                middle = statistics.median(one[part][way] for one in found[wait])
                first = first or middle
                made.append([f"{part}, {way}, threads {wait}", f"{middle:.0f}", f"{first / middle:.2f}×"])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to wait for a quiet machine")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    how = parser.parse_args()
    if how.once:
        print(json.dumps({part: updates(part) for part in PARTS}))
        return
    quiet.wait(how.patience, print)
    print(machine.describe(), flush=True)
    threads, names = len(os.sched_getaffinity(0)), list(WAITS)
    found: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in names}
    for number in range(how.rounds):
        for place in order(len(names), number):
            found[names[place]].append(in_a_process(names[place], threads))
    print(f"\n{threads} threads, medians of {how.rounds} processes with {UPDATES} updates each\n")
    print(machine.table(["Muon's update", "ms", "faster"], list(rows(found))))


if __name__ == "__main__":
    main()
