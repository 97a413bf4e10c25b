"""What our own code costs a row of `ziya data build`: asking, checking, accounting and keeping, beside the bare client.

    python -m benchmarks.builder [--rows 1500] [--rounds 5] [--in-flight 64]
    python -m benchmarks.builder --resume 1000000

The first asks the same server the same questions, in turns through the openai client alone and through our Asker with
a schema, a budget and a ledger on the disk. *Overhead* is the difference of a round's two figures. The second fills a
ledger, and goes through all of it as a build does that is started again: the estimate, then every answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import openai

from benchmarks import machine
from tests.llm_process import LlmProcess
from training.llm.asker import Asker, estimate
from training.llm.call import Call
from training.llm.endpoint import Endpoint, Price
from training.llm.ledger import Ledger
from training.llm.question import Answer, Question

SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
MODEL, MAX_TOKENS, BUDGET = "m", 256, 1000.0
CONTEXT = "A brown dog runs over wet sand beside two children; boxes: dog 10 20 200 180, child 220 15 300 190. " * 4


@dataclass(frozen=True)
class Cost:
    """Milliseconds a row: on the clock, and of this process's processor time."""

    wall: float
    processor: float


def questions(start: int, count: int) -> Iterator[tuple[int, Question]]:
    for number in range(start, start + count):
        yield number, Question(({"role": "user", "content": f"{CONTEXT} Picture {number}."},), SCHEMA, MAX_TOKENS)


async def bare(url: str, start: int, count: int, in_flight: int) -> None:
    """So many tasks that each ask the next question."""
    async with openai.AsyncOpenAI(
        api_key="none", base_url=url, max_retries=0, http_client=openai.DefaultAsyncHttpxClient(trust_env=False)
    ) as client:
        left = questions(start, count)

        async def ask() -> None:
            for _, question in left:
                await client.chat.completions.create(
                    model=MODEL,
                    messages=cast(Any, question.messages),
                    max_tokens=MAX_TOKENS,
                    temperature=0.0,
                    seed=0,
                    response_format=cast(Any, FORMAT),
                )

        await asyncio.gather(*(ask() for _ in range(in_flight)))


async def ours(url: str, start: int, count: int, in_flight: int) -> None:
    endpoint = Endpoint(url, MODEL, concurrency=in_flight, price=Price(1.0, 2.0))
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.db") as ledger:
        async with Asker(endpoint, ledger, BUDGET) as asker:
            async for _, known in asker.ask_all(questions(start, count)):
                if not isinstance(known, Answer):
                    raise SystemExit(f"the server failed: {known}")


def overhead(rows: int, rounds: int, in_flight: int) -> str:
    ways: dict[str, Callable[[str, int, int, int], Awaitable[None]]] = {"openai client": bare, "Asker": ours}
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder, LlmProcess(Path(folder) / "paid.jsonl") as server:
        asyncio.run(bare(server.url, 0, in_flight, in_flight))
        for number in range(rounds):
            names = list(ways)[:: 1 if number % 2 else -1]
            for name in names:
                start = (number * len(ways) + list(ways).index(name) + 1) * 10 * rows
                costs[name].append(_cost(partial(ways[name], server.url, start, rows, in_flight), rows))
                print(f"round {number + 1} of {rounds}, {name}: {costs[name][-1].wall:.2f} ms a row", flush=True)
    lines = [_line(name, found) for name, found in costs.items()]
    extra = [
        Cost(mine.wall - theirs.wall, mine.processor - theirs.processor)
        for mine, theirs in zip(costs["Asker"], costs["openai client"], strict=True)
    ]
    return machine.table(
        [f"{in_flight} in flight, {rows} rows", "ms a row", "ms CPU a row"], [*lines, _line("overhead", extra)]
    )


def resumed(rows: int) -> str:
    """A ledger of `rows` answers: the estimate, and every answer out of it."""
    endpoint = Endpoint("http://127.0.0.1:9/v1", MODEL, concurrency=64, price=Price(1.0, 2.0), patience=0.0)
    text = json.dumps({"question": "这是什么？" * 4, "answer": "一只狗在沙滩上跑。" * 6}, ensure_ascii=False)
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.db") as ledger:
        lines = []
        steps: tuple[tuple[str, Callable[[], None]], ...] = (
            ("written", partial(_fill, ledger, endpoint, rows, text)),
            ("estimated", partial(_estimated, ledger, endpoint, rows)),
            ("resumed", lambda: asyncio.run(_all(ledger, endpoint, rows))),
        )
        for name, step in steps:
            began = time.monotonic()
            step()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            lines.append([name, f"{1e6 * (time.monotonic() - began) / rows:.0f}", f"{peak:.0f}"])
            print(f"{rows} rows {name}", flush=True)
        size = ledger.path.stat().st_size / 2**20
        return machine.table([f"{rows:,} rows, a ledger of {size:.0f} MiB", "µs a row", "peak MiB so far"], lines)


def _fill(ledger: Ledger, endpoint: Endpoint, rows: int, text: str) -> None:
    for _, question in questions(0, rows):
        ledger.keep(question.digest(endpoint), Call(text, "stop", 130, 60), 0.00025)


def _estimated(ledger: Ledger, endpoint: Endpoint, rows: int) -> None:
    found = estimate((question for _, question in questions(0, rows)), endpoint, ledger)
    if (found.requests, found.cached) != (0, rows):
        raise SystemExit(f"not all were known: {found}")


async def _all(ledger: Ledger, endpoint: Endpoint, rows: int) -> None:
    async with Asker(endpoint, ledger, BUDGET) as asker:
        count = 0
        async for _, known in asker.ask_all(questions(0, rows)):
            count += isinstance(known, Answer) and known.cached
    if count != rows:
        raise SystemExit(f"{rows - count} of {rows} were not known")


def _cost(work: Callable[[], Awaitable[None]], rows: int) -> Cost:
    async def run() -> None:
        await work()

    began, used = time.monotonic(), time.process_time()
    asyncio.run(run())
    return Cost(1000 * (time.monotonic() - began) / rows, 1000 * (time.process_time() - used) / rows)


def _line(name: str, costs: list[Cost]) -> list[str]:
    wall = statistics.median(cost.wall for cost in costs)
    return [name, f"{wall:.2f}", f"{statistics.median(cost.processor for cost in costs):.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--resume", type=int, metavar="ROWS", help="measure this instead")
    options = parser.parse_args()
    described = f"{machine.describe()}, openai {version('openai')}"
    found = resumed(options.resume) if options.resume else overhead(options.rows, options.rounds, options.in_flight)
    print(f"{described}\n\n{found}")


if __name__ == "__main__":
    main()
