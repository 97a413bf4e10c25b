"""The native engine against other engines: the same weights, the same work, in turns, on the same cores.

    python -m benchmarks.engines --setup [--at build/peers]     once: environments and models (half an hour)
    python -m benchmarks.engines [--precision bf16|int8] [--requests 1,8,32] [--rounds 5]

A LLaMA with random weights and about 110 million parameters. A request is 32 visual and 32 text positions and 64
greedy tokens; all requests of a round start together (benchmarks/peers/workload.py). Every engine is loaded, in a
process of its own, and sleeps until its turn (benchmarks/alternation.py). Engines without an input for embeddings get
64 token ids, which costs the same. Prints medians, the native engine's ratio to the best peer, and how far it is
from what memory and processor allow.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import engine_arguments, machine, quiet
from benchmarks.alternation import Turns, alternate
from benchmarks.engine_limits import Cost, by_arithmetic, by_memory
from benchmarks.engine_tables import against_best, disturbance, speed, speeds
from benchmarks.peers import environments, models
from benchmarks.peers.contenders import LIMITS, NATIVE, PEERS, all_started

tell = partial(print, flush=True)


def setup(folder: Path, names: Sequence[str]) -> None:
    for environment in environments.ENVIRONMENTS:
        if not names or environment.name in names:
            environments.make(folder, environment, tell)
    models.make(folder / "models", folder, tell)


def limits(turns: Turns, cost: Cost, precision: str, counts: Sequence[int]) -> str:
    """The native engine's share of what the machine gave in the same rounds."""
    measured = [turn.answer for turn in turns.all if turn.engine == LIMITS.name]
    memory = statistics.median(rates["bytes"] for rates in measured)
    product = statistics.median(rates["operations"] for rates in measured)
    rows = []
    for count in counts:
        bounds = by_memory(cost, precision, count, memory), by_arithmetic(cost, product)
        native = turns.median(NATIVE.name, count, speed)
        shares = [f"{native / bound:.0%}" for bound in bounds]
        rows.append([f"{count} at once", *(f"{bound:.0f}" for bound in bounds), f"{native:.0f}", *shares])
    head = ["tokens/s", "memory allows", "arithmetic allows", "native", "of memory's", "of arithmetic's"]
    numbers, request = measured[0]["numbers"], cost.request_operations() / 1e9
    return (
        f"Memory is read at {memory / 1e9:.1f} GB/s; a step reads {cost.step_bytes(precision) / 1e6:.0f} MB. A product "
        f"of {numbers} matrices does {product / 1e9:.0f} GFLOP/s; a request is {request:.1f} GFLOP."
        f"\n\n{machine.table(head, rows)}"
    )


def run(how: argparse.Namespace) -> None:
    peers = [peer for peer in PEERS[how.precision] if not how.engines or peer.name in how.engines]
    contenders = [LIMITS, replace(NATIVE, options=how.native), *peers]
    quiet.wait(how.patience, tell)
    tell(machine.describe())
    most = max(how.requests)
    with all_started(contenders, how.at, precision=how.precision, threads=how.threads, most=most) as children:
        tell(", ".join(f"{child.name} {child.memory_bytes() >> 20} MiB" for child in children))
        quiet.wait(how.patience, tell)
        turns = alternate(children, how.requests, how.rounds, tell)
    engine_arguments.keep(turns, how.json)
    names = [peer.name for peer in peers]
    tell(f"\n{how.precision}, {how.threads} threads, medians of {how.rounds} rounds in alternation\n")
    tell(speeds(turns, [NATIVE.name, *names], how.requests))
    if names:
        tell(f"\n{against_best(turns, NATIVE.name, names, how.requests)}")
    tell(
        f"\n{limits(turns, Cost.of(how.at / 'models' / 'llama'), how.precision, how.requests)}\n\n{disturbance(turns)}"
    )


def main() -> None:
    arguments = engine_arguments.parser(__doc__)
    arguments.add_argument("--setup", action="store_true", help="make environments and models, and end")
    arguments.add_argument("--engines", type=engine_arguments.words, default=[], help="some of the peers, by name")
    how = engine_arguments.parse(arguments)
    if how.setup:
        setup(how.at, how.engines)
    elif not (how.at / "models").is_dir():
        tell(f"not measured: {how.at} is not there ({engine_arguments.SETUP})")
    else:
        run(how)


if __name__ == "__main__":
    main()
