"""What each trick of the compiled forward pass brings: all but one of them, against all of them, in turns.

    python -m benchmarks.engine_rungs [--at build/peers] [--precision bf16|int8] [--rounds 9] [--variant NAME]

Each variant is the library compiled again with one thing changed in its sources; a change whose place is no longer
found ends the benchmark, so that none is measured that is not there. Times of one step, of the 110M model that
benchmarks.engines uses: 512 rows of prompts, and 1, 8 and 32 rows after 96 positions each. Last comes torch, which
is the same engine without the library, in bfloat16 or, where the processor has no instructions for it, in float32.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import machine, quiet
from benchmarks.peers.numbers import quicker_numbers
from services.llama.engine import kernels
from services.llama.engine.batch import Batch, Model
from services.llama.engine.blocks import BLOCK
from services.llama.engine.cpu import CpuLlama
from services.llama.engine.kernels.build import command
from services.llama.engine.kv_cache import KVCache
from services.llama.engine.llama import Llama
from ziya.model.llama import LlamaWeights, load_llama

SOURCES = Path(kernels.__file__).parent
CONTEXT, PAST, PROMPT, MOST = 256, 96, 64, 32


@dataclass(frozen=True)
class Variant:
    """`old` of `file` becomes `new`. `only`: where it makes a difference, by instructions and precision."""

    name: str
    file: str = ""
    old: str = ""
    new: str = ""
    only: frozenset[str] = frozenset()


FUSED = '__asm__("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(left), "x"(right));'
ANY_FUSED = "sum = _mm256_fmadd_ps(_mm256_castsi256_ps(left), _mm256_castsi256_ps(right), sum);"
ADDED = '__asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16(left, right)));'
ANY_ADDED = "sum = _mm256_add_epi32(sum, _mm256_madd_epi16(left, right));"
IN_ORDER = 'if constexpr (parts(kind) == 2) __asm__ volatile("" ::: "memory");'
ALL_ROWS = "layer(number); m.team_.each(thread, 1, turn, [&](int) { m.asked_.gather(m.shape_.hidden); }); return;"
VARIANTS = (
    Variant("all of it"),
    Variant("next tile not fetched", "matrix.h", "const int lines = fetch ? fetched : 0;", "const int lines = 0;"),
    Variant("2 rows over a tile, not 6", "matrix.h", "return kind == INT4 ? 3 : 6;", "return kind == INT4 ? 1 : 2;"),
    Variant("weights in small pages", "matrix.h", "if (page == HUGE_PAGE) madvise", "if (false) madvise"),
    Variant("barriers that sleep at once", "threads.h", "SPINS = 2000", "SPINS = 0"),
    Variant("the last layer for all rows", "llama.h", "if (asked.rows == step->rows) return layer(number);", ALL_ROWS),
    Variant("a single pass fetches nothing", "avx2.h", "SOON = 1024;", "SOON = 0;", frozenset({"avx2"})),
    Variant("loads in any order", "matrix.h", IN_ORDER, "", frozenset({"avx2"})),
    Variant("products of any form", "avx2.h", FUSED, ANY_FUSED, frozenset({"avx2", "bf16"})),
    Variant("sums of any form", "avx2.h", ADDED, ANY_ADDED, frozenset({"avx2", "int8"})),
)


def build(variant: Variant, instructions: str, folder: Path) -> ctypes.CDLL:
    """Compiles the variant and loads it. Raises ValueError when what it changes is not there exactly once."""
    folder.mkdir()
    for source in (*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")):
        text = source.read_text("utf-8")
        if variant.file == source.name:
            if text.count(variant.old) != 1:
                raise ValueError(f"{variant.name}: {variant.file} does not hold {variant.old!r} once")
            text = text.replace(variant.old, variant.new)
        (folder / source.name).write_text(text, "utf-8")
    library = folder / "variant.so"
    subprocess.run(command("g++", instructions, folder / "engine.cpp", library), check=True)
    loaded = kernels.load(library)
    assert loaded is not None, "the instructions are those of this processor"
    return loaded


class Timed:
    """A model with a cache, and how long its steps take."""

    def __init__(self, name: str, model: Model, cache: KVCache) -> None:
        self.name, self._model, self._cache = name, model, cache
        self._tables = np.arange(1, 1 + MOST * (CONTEXT // BLOCK), dtype=np.int32).reshape(MOST, -1)
        self.seconds: dict[str, list[float]] = {}

    def round(self) -> None:
        prompts = 512 // PROMPT
        self._time("512 rows of prompts", prompts, PROMPT, 0, repeat=1)
        for count in (1, 8, MOST):
            self._time(f"{count} rows", count, 1, PAST, repeat=8)

    def _time(self, name: str, sequences: int, rows: int, past: int, repeat: int) -> None:
        starts = np.arange(sequences + 1, dtype=np.int32) * rows
        lengths = np.full(sequences, past + rows, np.int32)
        tables = np.ascontiguousarray(self._tables[:sequences])
        last = np.ones(sequences, np.int32)
        began = 0.0
        for number in range(repeat + 1):
            if number == 1:
                began = time.perf_counter()
            hidden = self._model.embed(torch.randint(10, 30000, (sequences * rows,)))
            hidden = self._model.forward(Batch(hidden, starts, lengths, tables, wanted_B=last), self._cache)
            self._model.logits(hidden)
        self.seconds.setdefault(name, []).append((time.perf_counter() - began) / repeat)


def made(load: Callable[..., LlamaWeights], how: argparse.Namespace, folder: Path) -> list[Timed]:
    quantise, instructions = "int8" if how.precision == "int8" else "none", how.instructions
    found, threads = [], len(os.sched_getaffinity(0))
    variants = [variant for variant in VARIANTS if variant.only <= {instructions, how.precision}]
    if how.variant:
        variants = [variants[0], *(variant for variant in variants[1:] if variant.name == how.variant)]
    for number, variant in enumerate(variants):
        model = CpuLlama(
            load(dtype=torch.bfloat16), CONTEXT, threads, quantise, build(variant, instructions, folder / str(number))
        )
        cache = model.new_cache(1 + MOST * (CONTEXT // BLOCK))
        found.append(Timed(variant.name, model, cache))
    if how.variant:
        return found
    numbers = quicker_numbers()
    torch_model = Llama(load(dtype=numbers), CONTEXT)
    found.append(Timed(f"{numbers}", torch_model, torch_model.new_cache(1 + MOST * (CONTEXT // BLOCK))))
    return found


def report(timed: list[Timed]) -> str:
    names = list(timed[0].seconds)
    rows = []
    for one in timed:
        cells = []
        for name in names:
            ratios = [mine / whole for mine, whole in zip(one.seconds[name], timed[0].seconds[name], strict=True)]
            cells.append(f"{1000 * statistics.median(one.seconds[name]):.2f} ms, {statistics.median(ratios):.2f}×")
        rows.append([one.name, *cells])
    return machine.table(["a step of", *names], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at", type=Path, default=Path("build/peers"), help="where benchmarks.engines put its models")
    parser.add_argument("--precision", choices=("bf16", "int8"), default="bf16")
    parser.add_argument(
        "--instructions", choices=list(kernels.libraries()), default=next(iter(kernels.libraries()), None)
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--variant", choices=[variant.name for variant in VARIANTS[1:]], help="this one alone")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to wait for a quiet machine")
    how = parser.parse_args()
    if how.instructions is None:
        parser.error("no compiled pass runs here: python -m services.llama.engine.kernels.build")
    torch.set_num_threads(1)
    quiet.wait(how.patience, print)
    print(machine.describe(), flush=True)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        weights = partial(load_llama, how.at / "models" / "checkpoint")
        timed = made(weights, how, Path(folder))
        for _ in range(how.rounds):
            for one in timed:
                torch.set_num_threads(len(os.sched_getaffinity(0)) if one.name.startswith("torch") else 1)
                one.round()
        print(f"\n{how.precision}, {how.instructions}; medians of {how.rounds} rounds in turns, and of each round's")
        print("ratio to all of it\n")
        print(report(timed))


if __name__ == "__main__":
    main()
