"""The LLaMA engine at the 13B shape, random bfloat16 weights, on one GPU: against transformers and the memory's limit.

    python -m benchmarks.engine_13b [--requests 1,8,32,128] [--rounds 5] [--json FILE]
    python -m benchmarks.engine_13b --shape small       the same code at a small shape, where there is no GPU

Native, transformers' continuous batching and its static generate are asked in alternation, each in a process of its
own. A request is 64 prompt tokens and 64 new ones, all requests of a round at once. Tokens per second count everything,
prompts too. The limit counts one thing alone: that each of the 64 steps reads all weights and all keys and values so
far, at the rate at which this device was measured to read memory. Targets: 75 % of it at 1 request, 60 % at 32.
The small shape's weights fit into a processor's cache, so its limit says nothing. It has not been run on a GPU yet:
without one and without --shape it says so and ends with status 2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.peers import workload
from benchmarks.peers.answering import Setting
from benchmarks.peers.child import Child, started
from benchmarks.peers.random_llama import SHAPES, device, llama_shape
from ziya.model.layout import LlamaShape, llama_table

KINDS = ("native", "continuous", "static")
TARGETS = {1: 0.75, 32: 0.6}
NUMBER_BYTES = 2


def step_bytes(shape: LlamaShape, requests: int) -> float:
    """What a step must read: all matrices but the embedding, of which it takes single rows, and half-full caches."""
    table = llama_table(shape)
    weights = sum(size[0] * size[-1] for size in table.values() if len(size) == 2) - shape.vocab * shape.hidden
    position = 2 * shape.layers * shape.kv_heads * shape.head_dim
    return NUMBER_BYTES * (weights + requests * position * (workload.PROMPT + workload.NEW / 2))


def bandwidth(size: int) -> float:
    """Bytes a second at best when `size` bytes are read on the device; it has them free again for the engines."""
    numbers = torch.ones(size // 4, device=device())
    seconds = []
    for _ in range(10):
        _wait()
        began = time.perf_counter()
        numbers.sum()
        _wait()
        seconds.append(time.perf_counter() - began)
    del numbers
    if device().type == "cuda":
        torch.cuda.empty_cache()
    return size / min(seconds)


def measure(how: argparse.Namespace, counts: list[int]) -> dict[str, dict[int, float]]:
    """Tokens per second by kind and number of requests: the median of the rounds; a first one warms up."""
    rates: dict[str, dict[int, list[float]]] = {kind: {count: [] for count in counts} for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        children: dict[str, Child] = {}
        for kind in KINDS:
            options = {"shape": how.shape, "kind": kind, "prefill_tokens": how.prefill_tokens}
            setting = Setting(Path(folder), "bf16", how.threads, max(counts), options)
            process = started(kind, "benchmarks.peers.random_llama", setting, logs=how.logs)
            children[kind] = stack.enter_context(process)
            print(f"{kind} is ready", flush=True)
        for number in range(how.rounds + 1):
            for count in counts:
                for kind, child in children.items():
                    found = child.round(count)
                    if number:
                        rates[kind][count].append(found["tokens"] / found["seconds"])
    return {kind: {count: statistics.median(found) for count, found in by.items()} for kind, by in rates.items()}


def report(shape: LlamaShape, rates: dict[str, dict[int, float]], read: float) -> list[list[str]]:
    rows = []
    for count, native in rates["native"].items():
        limit = count * read / step_bytes(shape, count)
        best = max(rates[kind][count] for kind in KINDS[1:])
        target = f"{TARGETS[count]:.0%}" if count in TARGETS and shape.hidden == SHAPES["13b"][0] else "-"
        figures = [f"{rates[kind][count]:.1f}" for kind in KINDS]
        rows.append([str(count), *figures, f"{native / best:.2f}", f"{limit:.1f}", f"{native / limit:.0%}", target])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="13b")
    parser.add_argument("--requests", default="1,8,32,128", help="how many at once, with commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prefill-tokens", type=int, default=2048)
    parser.add_argument("--logs", type=Path, default=Path("build/engine-13b"))
    parser.add_argument("--json", type=Path)
    how = parser.parse_args()
    print(machine.describe(), flush=True)
    if how.shape == "13b" and not torch.cuda.is_available():
        print(
            "There is no GPU here, so the engine was not measured at the 13B shape (--shape small runs the same code).",
            file=sys.stderr,
        )
        sys.exit(2)
    read = bandwidth((8 if device().type == "cuda" else 1) << 30)
    rates = measure(how, [int(count) for count in how.requests.split(",")])
    name = torch.cuda.get_device_name() if device().type == "cuda" else machine.processor()
    head = ["requests", *KINDS, "native / best", "limit", "native / limit", "target"]
    print(f"\n{how.shape} on {name}, {read / 1e9:.0f} GB/s read; tokens per second\n")
    print(machine.table(head, report(llama_shape(how.shape), rates, read)))
    if how.json:
        how.json.write_text(
            json.dumps({"device": name, "shape": how.shape, "bandwidth": read, "rates": rates}, indent=2)
        )


def _wait() -> None:
    if device().type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
