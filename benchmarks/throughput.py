"""Tokens per second with many clients at once: the whole stack against its own engine driven directly.

    python -m benchmarks.throughput [--clients 32] [--rounds 5]

The LLaMA has random weights and about 110 million parameters (benchmarks/random_checkpoint.py). A request is one
image (32 visual tokens) and a question, and 64 greedy tokens with the end token ignored; all clients start
together. The engine is measured before and after the stack, in a process of its own, with the same settings; best
is held against best and median against median of all its rounds. The stack's figure includes its clients' work
on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import torch

from benchmarks import machine, random_checkpoint
from benchmarks.callers import Ask, GrpcCaller, HttpCaller, Timing
from benchmarks.direct import Direct
from benchmarks.first_token import fresh_image
from cli.stack import Options, running_stack
from services.llama.engine.engine import EngineOptions
from ziya import event_loop

NEW_TOKENS = 64
QUESTION = "abcd " * 6
FOLDER = Path("build/random-110m")
THREADS = 2


def ask() -> Ask:
    return Ask(QUESTION, fresh_image(0), NEW_TOKENS, ignore_eos=True)


async def rounds(clients: int, count: int, one: Callable[[int], Awaitable[Timing]]) -> list[tuple[float, list[Timing]]]:
    """(tokens per second, timings) of `count` rounds, after one that does not count."""
    results = []
    for number in range(count + 1):
        started = time.perf_counter()
        timings = await asyncio.gather(*(one(client) for client in range(clients)))
        seconds = time.perf_counter() - started
        if number:
            results.append((sum(t.tokens for t in timings) / seconds, list(timings)))
    return results


async def engine(clients: int, count: int) -> None:
    """Prints the tokens per second of each round of the engine alone, one a line."""
    torch.set_num_threads(THREADS)
    direct = Direct.load(FOLDER, EngineOptions(threads=THREADS, slots=max(32, clients)), torch.bfloat16)
    visual = direct.see(fresh_image(0))
    for speed, _ in await rounds(clients, count, lambda _: direct.ask(ask(), visual)):
        print(speed)
    await direct.engine.close()


def engine_in_own_process(clients: int, count: int) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.throughput", "--engine", f"--clients={clients}", f"--rounds={count}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return [float(line) for line in done.stdout.split()]


async def stack(clients: int, count: int) -> dict[str, list[tuple[float, list[Timing]]]]:
    os.environ |= {"ZIYA_LLAMA_DTYPE": "bfloat16", "ZIYA_LLAMA_THREADS": str(THREADS)}
    results = {}
    async with running_stack(Options(FOLDER, 0, 0), lambda _: None) as addresses:
        grpc_callers = [GrpcCaller(addresses.grpc) for _ in range(clients)]
        results["gRPC"] = await rounds(clients, count, lambda client: grpc_callers[client].ask(ask()))
        http_callers = [HttpCaller(addresses.http) for _ in range(clients)]
        results["HTTP"] = await rounds(clients, count, lambda client: http_callers[client].ask(ask()))
        closing = [caller.close() for caller in grpc_callers] + [caller.close() for caller in http_callers]
        await asyncio.gather(*closing)
    return results


def report(alone: list[float], through: dict[str, list[tuple[float, list[Timing]]]]) -> str:
    best, middle = max(alone), statistics.median(alone)
    rows = [["engine alone", f"{best:.0f}", f"{middle:.0f}", "100%", "100%", ""]]
    for name, results in through.items():
        speeds = [speed for speed, _ in results]
        first = statistics.median(t.first_token for _, timings in results for t in timings)
        median = statistics.median(speeds)
        ratios = [f"{max(speeds) / best:.0%}", f"{median / middle:.0%}"]
        rows.append([f"stack, {name}", f"{max(speeds):.0f}", f"{median:.0f}", *ratios, f"{first:.2f}"])
    head = ["tokens/s", "best round", "median", "best against engine", "median against engine", "s to first token, p50"]
    return machine.table(head, rows)


def shares(timings: list[Timing]) -> str:
    """Where a request's time goes, as the gateway reports it."""
    total = statistics.median(t.total for t in timings)
    rows = []
    for stage in ("admission", "visual_wait", "llama_queue", "prefill", "decode"):
        seconds = statistics.median(t.stage_seconds.get(stage, 0.0) for t in timings)
        rows.append([stage.replace("_", " "), f"{seconds:.3f}", f"{seconds / total:.0%}"])
    return machine.table(["part of a request (gRPC)", "s, p50", "share"], rows)


async def run(clients: int, count: int) -> None:
    random_checkpoint.build(FOLDER)
    print(machine.describe(), flush=True)
    before = engine_in_own_process(clients, count)
    through = await stack(clients, count)
    after = engine_in_own_process(clients, count)
    print(f"{clients} clients, {NEW_TOKENS} tokens each, {count} rounds, bfloat16, {THREADS} threads\n")
    print(report(before + after, through))
    print(f"\n{shares([timing for _, timings in through['gRPC'] for timing in timings])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", action="store_true", help="only the engine, in this process")
    arguments = parser.parse_args()
    event_loop.run((engine if arguments.engine else run)(arguments.clients, arguments.rounds))


if __name__ == "__main__":
    main()
