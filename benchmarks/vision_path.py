"""From a picture to an answer: the whole distributed stack against other engines' BLIP-2 in one process, in turns.

    python -m benchmarks.vision_path [--requests 1,8,32] [--rounds 5] [--at build/peers]

The same random BLIP-2 of about 133 million parameters everywhere (the peers' folder is what `ziya convert --to-hf`
made of the stack's). A request is a picture of 224 x 224 that was never seen before, 32 text tokens, and 64 greedy
ones. The stack gets a PNG over gRPC and passes it through gateway, vision, Redis, Q-Former and Triton, each a process;
vLLM gets pixels, transformers tensors. All N requests start together.
"""

from __future__ import annotations

import argparse
import asyncio
from functools import partial

from benchmarks import engine_arguments, machine, quiet
from benchmarks.alternation import Turns, alternate
from benchmarks.callers import Ask
from benchmarks.engine_tables import against_best, disturbance, speeds
from benchmarks.peers.contenders import TRANSFORMERS_BLIP2, VLLM_BLIP2, all_started
from benchmarks.peers.workload import NEW, TEXT
from benchmarks.questions import Questions
from benchmarks.stack_rounds import png, stack_rounds, stages
from ziya import event_loop

WAYS = ("gRPC", "HTTP")
PEERS = (VLLM_BLIP2, TRANSFORMERS_BLIP2)
tell = partial(print, flush=True)


def ask(questions: Questions, offset: int, number: int) -> Ask:
    return Ask(questions.ask(offset + number, TEXT), png(offset + number), max_tokens=NEW, ignore_eos=True)


async def measure(how: argparse.Namespace) -> Turns:
    checkpoint, most = how.at / "models" / "checkpoint", max(how.requests)
    questions = Questions(checkpoint)
    ways = {way: partial(ask, questions, index << 32) for index, way in enumerate(WAYS)}
    with all_started(PEERS, how.at, precision=how.precision, threads=how.threads, most=most) as children:
        async with stack_rounds(checkpoint, ways, precision=how.precision, threads=how.threads, most=most) as stack:
            quiet.wait(how.patience, tell)
            return await asyncio.to_thread(alternate, [*stack, *children], how.requests, how.rounds, tell)


def main() -> None:
    how = engine_arguments.parse(engine_arguments.parser(__doc__))
    if not (how.at / "models").is_dir():
        tell(f"not measured: {how.at} is not there ({engine_arguments.SETUP})")
        return
    quiet.wait(how.patience, tell)
    tell(machine.describe())
    turns = event_loop.run(measure(how))
    engine_arguments.keep(turns, how.json)
    ours, peers = [f"stack, {way}" for way in WAYS], [peer.name for peer in PEERS]
    tell(f"\n{how.precision}, {how.threads} threads, medians of {how.rounds} rounds in alternation\n")
    tell(speeds(turns, [*ours, *peers], how.requests))
    for name in ours:
        tell(f"\n{against_best(turns, name, peers, how.requests)}")
    tell(f"\n{stages(turns, ours[0], how.requests)}\n\n{disturbance(turns)}")


if __name__ == "__main__":
    main()
