"""What the stack adds to the time to first token: the whole path against the same modules in one process.

    python -m benchmarks.first_token [--requests 100] [--checkpoint checkpoints/ziya-tiny]

One request at a time on an otherwise idle machine; direct and stack take turns, request by request, so that
whatever the machine does meets both. A fresh image is one that nobody has sent before; a cached one was sent
just before. Prints medians and the 90th percentile, and where the stack's time goes, stage by stage.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import machine
from benchmarks.callers import Ask, Caller, GrpcCaller, HttpCaller, Timing
from benchmarks.direct import Direct
from cli.stack import CHECKPOINT, Options, running_stack
from services.llama.engine.engine import EngineOptions
from ziya import event_loop

QUESTION = "What is this?"
WARM_UP = 10


def fresh_image(number: int) -> bytes:
    """A PNG of 256 x 256 that differs from every other in its bytes and pixels."""
    draw = np.random.default_rng(number)
    coarse = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((256, 256)).save(stream, "PNG")
    return stream.getvalue()


async def measure(direct: Direct, callers: dict[str, Caller], requests: int) -> dict[str, list[Timing]]:
    """Timings of each way and case, `requests` each, after a warm-up that does not count."""
    timings: dict[str, list[Timing]] = {}
    image_number = 0
    for round_number in range(WARM_UP + requests):
        for name, ways in _ways(direct, callers).items():
            image_number += 1
            ask = Ask(QUESTION, fresh_image(image_number))
            for case, way in ways.items():
                timing = await way(ask)
                if round_number >= WARM_UP:
                    timings.setdefault(f"{name} {case}", []).append(timing)
    return timings


Way = Callable[[Ask], Awaitable[Timing]]


def _ways(direct: Direct, callers: dict[str, Caller]) -> dict[str, dict[str, Way]]:
    async def cached(ask: Ask) -> Timing:
        visual = await asyncio.to_thread(direct.see, ask.image)  # before the clock starts
        return await direct.ask(ask, visual)

    ways: dict[str, dict[str, Way]] = {"direct": {"fresh": direct.ask, "cached": cached}}
    return ways | {name: {"fresh": caller.ask, "cached": caller.ask} for name, caller in callers.items()}


def report(timings: dict[str, list[Timing]], names: list[str]) -> str:
    rows = []
    for case in ("fresh", "cached"):
        floor = statistics.median(t.first_token for t in timings[f"direct {case}"])
        for name in ("direct", *names):
            first = sorted(t.first_token for t in timings[f"{name} {case}"])
            median, tail = statistics.median(first), first[int(0.9 * len(first))]
            rows.append([f"{name}, {case} image", *(f"{1000 * x:.1f}" for x in (median, tail, median - floor))])
    return machine.table(["ms to first token", "p50", "p90", "p50 over direct"], rows)


def shares(timings: list[Timing]) -> str:
    """Where the time to first token goes: medians of what the stages report, which do not overlap, and the rest."""
    rows = {label: statistics.median(seconds(t) for t in timings) for label, seconds in PARTS.items()}
    first = statistics.median(t.first_token for t in timings)
    cells = [[label, f"{1000 * seconds:.1f}", f"{seconds / first:.0%}"] for label, seconds in rows.items()]
    return machine.table(["part of the time to first token", "ms, p50", "share"], cells)


def _stage(*names: str) -> Callable[[Timing], float]:
    return lambda timing: sum(timing.stage_seconds.get(name, 0.0) for name in names)


_vision = _stage("vision_queue", "vision")
_stages = _stage("admission", "visual_wait", "llama_queue", "prefill")
PARTS: dict[str, Callable[[Timing], float]] = {
    "gateway, until Triton is asked": _stage("admission"),
    "vision: waiting for a batch, and the ViT": _vision,
    "decoding the image, Q-Former, Redis, calls between them": lambda t: _stage("visual_wait")(t) - _vision(t),
    "LLaMA: waiting for the engine": _stage("llama_queue"),
    "LLaMA: prefill and first token": _stage("prefill"),
    "client to gateway to Triton and back": lambda t: t.first_token - _stages(t),
}


async def run(checkpoint: Path, requests: int) -> None:
    print(machine.describe(), flush=True)
    direct = Direct.load(checkpoint, EngineOptions(threads=1))
    torch.set_num_threads(1)
    async with running_stack(Options(checkpoint, 0, 0), lambda _: None) as addresses:
        callers: dict[str, Caller] = {
            "HTTP": HttpCaller(addresses.http),
            "gRPC": GrpcCaller(addresses.grpc),
        }
        timings = await measure(direct, callers, requests)
        for caller in callers.values():
            await caller.close()
    await direct.engine.close()
    print(f"{requests} requests a row, {checkpoint.name}\n\n{report(timings, list(callers))}\n")
    for case in ("fresh", "cached"):
        print(f"gRPC, {case} image\n\n{shares(timings[f'gRPC {case}'])}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    arguments = parser.parse_args()
    event_loop.run(run(arguments.checkpoint, arguments.requests))


if __name__ == "__main__":
    main()
