"""The language model through gateway and Triton against the same engine in a process of its own, in turns.

    python -m benchmarks.engine_in_stack [--precision bf16|int8] [--requests 1,8,32] [--rounds 5] [--at build/peers]

Requests are text alone, 64 prompt tokens that nobody has sent before and 64 greedy ones, so that what differs is the
way to the engine and back: gateway, Triton, the client, all on the same cores. Asked for: at least 90 %.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from benchmarks import engine_arguments, machine, quiet
from benchmarks.alternation import Turns, alternate
from benchmarks.callers import Ask
from benchmarks.engine_tables import disturbance, speed, speeds
from benchmarks.peers.contenders import NATIVE, all_started
from benchmarks.peers.workload import NEW, PROMPT
from benchmarks.questions import Questions
from benchmarks.stack_rounds import stack_rounds
from ziya import event_loop

WAYS = ("gRPC", "HTTP")
tell = partial(print, flush=True)


def ask(questions: Questions, offset: int, number: int) -> Ask:
    return Ask(questions.ask(offset + number, PROMPT), max_tokens=NEW, ignore_eos=True)


async def measure(how: argparse.Namespace) -> Turns:
    checkpoint, most = how.at / "models" / "checkpoint", max(how.requests)
    questions = Questions(checkpoint)
    ways = {way: partial(ask, questions, index << 32) for index, way in enumerate(WAYS)}
    native = replace(NATIVE, options={**how.native, "kind": "text"})
    with all_started([native], how.at, precision=how.precision, threads=how.threads, most=most) as children:
        async with stack_rounds(checkpoint, ways, precision=how.precision, threads=how.threads, most=most) as stack:
            quiet.wait(how.patience, tell)
            return await asyncio.to_thread(alternate, [*children, *stack], how.requests, how.rounds, tell)


def shares(turns: Turns, counts: Sequence[int]) -> str:
    rows = []
    for way in WAYS:
        for count in counts:
            each = turns.ratios(f"stack, {way}", NATIVE.name, count, speed)
            ratio = turns.median(f"stack, {way}", count, speed) / turns.median(NATIVE.name, count, speed)
            rows.append([f"{way}, {count} at once", f"{ratio:.0%}", f"{min(each):.0%} to {max(each):.0%}"])
    return machine.table(["stack over engine, tokens/s", "of the medians", "of each round"], rows)


def main() -> None:
    how = engine_arguments.parse(engine_arguments.parser(__doc__))
    if not (how.at / "models").is_dir():
        tell(f"not measured: {how.at} is not there ({engine_arguments.SETUP})")
        return
    quiet.wait(how.patience, tell)
    tell(machine.describe())
    turns = event_loop.run(measure(how))
    engine_arguments.keep(turns, how.json)
    tell(f"\n{how.precision}, {how.threads} threads, medians of {how.rounds} rounds in alternation\n")
    tell(speeds(turns, [NATIVE.name, *(f"stack, {way}" for way in WAYS)], how.requests))
    tell(f"\n{shares(turns, how.requests)}\n\n{disturbance(turns)}")


if __name__ == "__main__":
    main()
