"""How long each stage takes on this machine, for `ziya plan --times FILE`, asked through the programs' own interfaces.

    python -m benchmarks.stage_times OUTPUT.json [--rounds 3] [--checkpoint checkpoints/ziya-tiny]

Each round starts two stacks. In one the encoders wait until a batch is complete, so that batches of 1 to 16 can be
timed (`compute_seconds` of Encode and Query). In the other, with the usual settings, the language model decodes for 1
to 32 clients at once, prefills prompts of several lengths, and single requests tell what lies around the stages.
Figures are medians over all rounds. On one machine all programs share its cores, the clients too; in a cluster each has
its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
from collections import defaultdict
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from benchmarks import machine
from benchmarks.callers import Ask, GrpcCaller
from benchmarks.first_token import fresh_image
from benchmarks.one_by_one import Stack, quiet, started
from benchmarks.process_costs import cpu_seconds
from cli.capacity.arrivals import Mix
from cli.capacity.simulate import Limits
from cli.capacity.stage_times import StageTimes
from cli.capacity.workload import alone
from cli.stack import CHECKPOINT
from protos.qformer_pb2 import Features, QueryRequest
from protos.qformer_pb2_grpc import QFormerStub
from protos.vision_pb2 import EncodeReply, EncodeRequest
from protos.vision_pb2_grpc import VisionEncoderStub
from ziya import event_loop, rpc
from ziya.checkpoint import read_config
from ziya.prompt import Turn, render, tokenize

BATCHES = (1, 2, 4, 8, 16)
RUNNING = (1, 2, 4, 8, 16, 32)
WORDS = (1, 20, 60, 120, 160)
REPEATS = 8
NEW_TOKENS = 65
QUESTION = "What is this?"
GATHER_SECONDS = "0.4"

Samples = defaultdict[tuple[str, int], list[float]]


class Pictures:
    """Every picture is one that was never sent before."""

    def __init__(self) -> None:
        self._number = 0

    def next(self) -> bytes:
        self._number += 1
        return fresh_image(self._number)


async def gathered(stack: Stack, samples: Samples, pictures: Pictures) -> None:
    """Seconds of vision's and the Q-Former's batches by size."""
    vision, qformer = rpc.connect(stack.addresses.vision), rpc.connect(stack.addresses.qformer)
    encode: Any = VisionEncoderStub(vision).Encode
    query: Any = QFormerStub(qformer).Query
    for repeat in range(REPEATS + 1):
        for size in BATCHES:
            asks = [EncodeRequest(image=pictures.next(), inline=True) for _ in range(size)]
            encoded = await asyncio.gather(*(encode(ask, timeout=60) for ask in asks))
            _note(samples, "vision", encoded, repeat)
            queries = [QueryRequest(features=Features(tensor=reply.features), inline=True) for reply in encoded]
            _note(samples, "qformer", await asyncio.gather(*(query(ask, timeout=60) for ask in queries)), repeat)
    await asyncio.gather(vision.close(None), qformer.close(None))


def _note(samples: Samples, stage: str, replies: list[Any], repeat: int) -> None:
    """Only of batches that ran as one: then all replies name the same seconds. The first of a size does not count."""
    if repeat and len({reply.compute_seconds for reply in replies}) == 1:
        samples[stage, len(replies)].append(replies[0].compute_seconds)


async def language_model(stack: Stack, samples: Samples, checkpoint: Path) -> None:
    callers = [GrpcCaller(stack.addresses.grpc) for _ in range(max(RUNNING))]
    await callers[0].ask(Ask("a", max_tokens=NEW_TOKENS, ignore_eos=True))
    for words in WORDS:
        question = "word " * words
        tokens = prompt_tokens(checkpoint, question)
        for _ in range(REPEATS):
            timing = await callers[0].ask(Ask(question, max_tokens=2, ignore_eos=True))
            samples["prefill", tokens].append(timing.stage_seconds["prefill"])
    for running in RUNNING:
        ask = Ask("a", max_tokens=NEW_TOKENS, ignore_eos=True)
        for timing in await asyncio.gather(*(caller.ask(ask) for caller in callers[:running])):
            samples["step", running].append(timing.stage_seconds["decode"] / (NEW_TOKENS - 1))
    await asyncio.gather(*(caller.close() for caller in callers))


def prompt_tokens(checkpoint: Path, question: str) -> int:
    tokenizer = Tokenizer.from_file(str(checkpoint / "llama" / "tokenizer.json"))
    turn: Turn[None] = Turn("user", question, ())
    prompt = render([turn], read_config(checkpoint).prompt)
    return sum(map(len, tokenize(tokenizer, prompt.texts)))


async def around(stack: Stack, samples: Samples, pictures: Pictures) -> None:
    """What a request spends beside batches and steps, with nobody else there."""
    caller, channel = GrpcCaller(stack.addresses.grpc), rpc.connect(stack.addresses.vision)
    encode: Any = VisionEncoderStub(channel).Encode
    for repeat in range(4 * REPEATS + 4):
        text = await caller.ask(Ask(QUESTION, max_tokens=2, ignore_eos=True))
        shown = await caller.ask(Ask(QUESTION, pictures.next(), max_tokens=2, ignore_eos=True))
        wall, reply = await _timed(encode(EncodeRequest(image=pictures.next(), instruction="?"), timeout=60))
        if repeat >= 4:
            stages = text.stage_seconds
            samples["around llama", 0].append(text.first_token - stages["prefill"] - stages["llama_queue"])
            samples["visual wait", 0].append(shown.stage_seconds["visual_wait"])
            samples["alone", 0].append(shown.first_token)
            samples["encode", 0].append(wall)
            samples["around vision", 0].append(wall - reply.compute_seconds - reply.queue_seconds)
    await asyncio.gather(caller.close(), channel.close(None))


async def _timed(call: Awaitable[EncodeReply]) -> tuple[float, EncodeReply]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    reply = await call
    return loop.time() - began, reply


async def gateway(stack: Stack, samples: Samples) -> None:
    """Processor seconds of the gateway for short and for long answers, eight at a time: as under load."""
    callers = [GrpcCaller(stack.addresses.grpc) for _ in range(8)]

    async def cost(tokens: int, rounds: int) -> float:
        before = cpu_seconds(stack.pids["gateway"])
        for _ in range(rounds):
            ask = Ask(QUESTION, max_tokens=tokens, ignore_eos=True)
            await asyncio.gather(*(caller.ask(ask) for caller in callers))
        return (cpu_seconds(stack.pids["gateway"]) - before) / (rounds * len(callers))

    await cost(2, 4)
    short, long = await cost(2, 25), await cost(2 + NEW_TOKENS, 6)
    token = max(0.0, (long - short) / NEW_TOKENS)
    samples["gateway token", 0].append(token)
    samples["gateway request", 0].append(max(0.0, short - 2 * token))
    await asyncio.gather(*(caller.close() for caller in callers))


async def one_round(checkpoint: Path, samples: Samples, pictures: Pictures) -> None:
    os.environ |= {"ZIYA_VISION_MAX_WAIT": GATHER_SECONDS, "ZIYA_QFORMER_MAX_WAIT": GATHER_SECONDS}
    async with started(checkpoint) as stack:
        await gathered(stack, samples, pictures)
    del os.environ["ZIYA_VISION_MAX_WAIT"], os.environ["ZIYA_QFORMER_MAX_WAIT"]
    async with started(checkpoint) as stack:
        for program, seconds in stack.seconds.items():
            samples[f"start {program}", 0].append(seconds)
        await around(stack, samples, pictures)
        await language_model(stack, samples, checkpoint)
        await gateway(stack, samples)


def result(samples: Samples, checkpoint: Path) -> StageTimes:
    config = read_config(checkpoint)
    batches = {stage: _points(samples, stage) for stage in ("vision", "qformer")}
    # From the model's first wait to its tokens lie one Encode, one Q-Former batch, and the way over Redis.
    way = max(0.0, _middle(samples, "visual wait") - _middle(samples, "encode") - batches["qformer"][1])
    return StageTimes.model_validate(
        {
            "name": f"{config.name}, one core for each model",
            "measured": {"by": "python -m benchmarks.stage_times", "where": machine.describe()},
            "image_tokens": config.queries,
            "gateway": {
                "request_seconds": _middle(samples, "gateway request"),
                "token_seconds": _middle(samples, "gateway token"),
                "start_seconds": _middle(samples, "start gateway"),
            },
            "vision": _stage(samples, "vision", batches["vision"], _middle(samples, "around vision")),
            "qformer": _stage(samples, "qformer", batches["qformer"], way),
            "llama": {
                "step_seconds": _points(samples, "step"),
                "prefill_seconds": _points(samples, "prefill"),
                "around_seconds": max(0.0, _middle(samples, "around llama") - _middle(samples, "gateway request")),
                "start_seconds": _middle(samples, "start triton"),
            },
        }
    )


def _stage(samples: Samples, stage: str, points: dict[int, float], way: float) -> dict[str, Any]:
    return {
        "batch_seconds": points,
        "spread": round(statistics.median(_spread(samples[stage, size]) for size in points), 3),
        "around_seconds": round(way, 6),
        "start_seconds": _middle(samples, f"start {stage}"),
    }


def _spread(values: list[float]) -> float:
    """Standard deviation over mean, from the median distance to the median, which outliers do not move."""
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(value - middle) for value in values) / middle


def _middle(samples: Samples, name: str, number: int = 0) -> float:
    return round(statistics.median(samples[name, number]), 6)


def _points(samples: Samples, name: str) -> dict[int, float]:
    return {number: _middle(samples, name, number) for which, number in sorted(samples) if which == name}


def tables(times: StageTimes) -> str:
    rows = [
        *([f"vision, batch of {n}", f"{1000 * s:.1f}"] for n, s in times.vision.batch_seconds.items()),
        *([f"Q-Former, batch of {n}", f"{1000 * s:.1f}"] for n, s in times.qformer.batch_seconds.items()),
        *([f"prefill of {n} tokens", f"{1000 * s:.1f}"] for n, s in times.llama.prefill_seconds.items()),
        *([f"decode step of {n} running", f"{1000 * s:.1f}"] for n, s in times.llama.step_seconds.items()),
        *(
            [f"around {stage}", f"{1000 * getattr(times, stage).around_seconds:.1f}"]
            for stage in ("vision", "qformer", "llama")
        ),
        ["gateway, processor, a request", f"{1000 * times.gateway.request_seconds:.2f}"],
        ["gateway, processor, a token", f"{1000 * times.gateway.token_seconds:.3f}"],
        *(
            [f"start of {stage}", f"{1000 * getattr(times, stage).start_seconds:.0f}"]
            for stage in ("gateway", "vision", "qformer", "llama")
        ),
    ]
    return machine.table(["what", "ms, median"], rows)


async def measure(checkpoint: Path, rounds: int, samples: Samples) -> StageTimes:
    quiet()
    pictures = Pictures()
    for number in range(rounds):
        await one_round(checkpoint, samples, pictures)
        print(f"round {number + 1} of {rounds} done", flush=True)
    return result(samples, checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUTPUT.json")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    arguments = parser.parse_args()
    samples: Samples = defaultdict(list)
    times = event_loop.run(measure(arguments.checkpoint.absolute(), arguments.rounds, samples))
    arguments.output.write_text(times.model_dump_json(indent=2) + "\n", "utf-8")
    print(f"\n{times.measured['where']}\n\n{tables(times)}\n\nwritten to {arguments.output}")
    mix = Mix(1.0, 0.0, prompt_tokens(arguments.checkpoint, QUESTION), 2)
    added = 1000 * sum(alone(mix, times, Limits()).values())
    found = 1000 * _middle(samples, "alone")
    print(f"A request alone: {found:.1f} ms to its first token; these times add up to {added:.1f} ms.")


if __name__ == "__main__":
    main()
