"""Fills what is bounded by a number and not by time, so that a soak does not take its filling for a leak.

Two things of a running stack keep the last so many of something, however old: the stream of announcements in Redis, and
the language model's tokenizer (the library's cache of the texts it has taken apart). At a soak's rate they would
need an hour to be full. And connections to Redis stay open once a crowd has needed them: so there is a crowd first.
"""

from __future__ import annotations

import time

from cli.load.experiment import Stopwatch
from cli.load.grpc_caller import GrpcCaller
from cli.load.lengths import Lengths
from cli.load.request import Options
from cli.load.run import Bounds, Run
from cli.load.workload import Mix, Workload
from tests.chaos.act import CLIENT_SECONDS, workload
from tests.chaos.callers import MODEL
from tests.chaos.scene import Scene
from ziya.keys import TOKENS_PREFIX
from ziya.work_stream import MAX_READY, announcement

# tokenizers' DEFAULT_CACHE_CAPACITY, and some more, since two texts may be the same
TEXTS = 11_000
TOGETHER = 16
CROWD, CROWD_TOGETHER = 400, 48
# As long as the soak's own questions; an answer is one token.
SHORT = Mix(Lengths.parse("uniform:4:20", "prompt"), Lengths.parse("1", "answer"))


async def fill(scene: Scene) -> int:
    """How many questions were answered on the way."""
    _announce(scene)
    await _ask(scene, workload(CROWD, 0), CROWD, CROWD_TOGETHER)
    return await _ask(scene, Workload(SHORT, None, 0, time.time_ns()), TEXTS, TOGETHER)


def _announce(scene: Scene) -> None:
    """Of keys that nobody waits for."""
    with scene.client as client, client.pipeline(transaction=False) as pipeline:
        for number in range(MAX_READY):
            pipeline.execute_command(*announcement(f"{TOKENS_PREFIX}{number:064x}", None))
        pipeline.execute()


async def _ask(scene: Scene, asked: Workload, count: int, together: int) -> int:
    clock = Stopwatch()
    caller = GrpcCaller(scene.stack.addresses["grpc"], MODEL, Options(), clock)
    run = Run(caller, asked, Bounds(count, None, CLIENT_SECONDS), clock)
    try:
        await run.closed(together)
    finally:
        await caller.close()
    return len(run.answers) - run.failed
