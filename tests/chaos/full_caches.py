"""Fills what is bounded by a number and not by time, so that a soak does not take its filling for a leak.

Two things of a running stack keep the last so many of something, however old: the stream of announcements in Redis, and
the language model's tokenizer (the library's cache of the texts it has taken apart). At a soak's rate they would
need an hour to be full.
"""

from __future__ import annotations

import time

from cli.load.experiment import Stopwatch
from cli.load.grpc_caller import GrpcCaller
from cli.load.lengths import Lengths
from cli.load.request import Options
from cli.load.run import Bounds, Run
from cli.load.workload import Mix, Workload
from tests.chaos.act import CLIENT_SECONDS
from tests.chaos.callers import MODEL
from tests.chaos.scene import Scene
from ziya.keys import TOKENS_PREFIX
from ziya.work_stream import MAX_READY, announcement

# tokenizers' DEFAULT_CACHE_CAPACITY, and some more, since two texts may be the same
TEXTS = 11_000
TOGETHER = 16
# As long as the soak's own questions; an answer is one token.
SHORT = Mix(Lengths.parse("uniform:4:20", "prompt"), Lengths.parse("1", "answer"))


async def fill(scene: Scene) -> int:
    """How many questions were answered on the way."""
    _announce(scene)
    return await _ask(scene)


def _announce(scene: Scene) -> None:
    """Of keys that nobody waits for."""
    with scene.client as client, client.pipeline(transaction=False) as pipeline:
        for number in range(MAX_READY):
            pipeline.execute_command(*announcement(f"{TOKENS_PREFIX}{number:064x}", None))
        pipeline.execute()


async def _ask(scene: Scene) -> int:
    clock = Stopwatch()
    caller = GrpcCaller(scene.stack.addresses["grpc"], MODEL, Options(), clock)
    run = Run(caller, Workload(SHORT, None, 0, time.time_ns()), Bounds(TEXTS, None, CLIENT_SECONDS), clock)
    try:
        await run.closed(TOGETHER)
    finally:
        await caller.close()
    return len(run.answers) - run.failed
