"""One fault, from an undisturbed beginning to the last request's end: load, breaks at their times, a verdict."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cli.load.arrivals import send_times
from cli.load.experiment import Stopwatch
from cli.load.lengths import Lengths
from cli.load.pictures import Album, generated
from cli.load.request import Caller
from cli.load.run import Bounds, Run
from cli.load.workload import Mix, Workload
from tests.chaos.callers import Both, Leaving
from tests.chaos.faults import Fault
from tests.chaos.scene import Scene
from tests.chaos.verdict import Verdict, judge

PIXELS = 224
# Half of the pictures were shown before; one question in ten shows none.
MIX = Mix(Lengths.parse("uniform:4:20", "prompt"), Lengths.parse("uniform:4:24", "answer"), image_share=0.9)
# Where answers are to be under way when something breaks.
LONG = replace(MIX, answer=Lengths.parse("uniform:4:200", "answer"))
REUSE = 0.5
# A request has this long at the gateway, and its client waits a little longer for the gateway's word on it.
DEADLINE_SECONDS, CLIENT_SECONDS = 60.0, 65.0


@dataclass(frozen=True)
class Load:
    """`requests` at `rate` a second; the fault strikes after `calm` seconds, then `every` so many, `breaks` times."""

    requests: int
    rate: float
    calm: float
    every: float
    breaks: int

    @classmethod
    def of(cls, requests: int, rate: float) -> Load:
        """A tenth undisturbed, then breaks 25 seconds apart: who dies sooner is given up by the supervisor."""
        seconds = requests / rate
        calm = min(10.0, seconds / 10)
        breaks = max(1, int((seconds - calm - 10.0) / 25.0) + 1)
        return cls(requests, rate, calm, 25.0, breaks)


async def act(scene: Scene, fault: Fault, load: Load, seed: int) -> Verdict:
    """Runs it; the stack is whole again when this returns."""
    clock = Stopwatch()
    callers = Both(scene.stack.url, scene.stack.addresses["grpc"], clock)
    caller: Caller = Leaving(callers) if fault.leaving else callers
    asked = workload(load.requests, seed, LONG if fault.ends_answers else MIX)
    run = Run(caller, asked, Bounds(load.requests, None, CLIENT_SECONDS), clock)
    clock.restart()
    try:
        async with asyncio.TaskGroup() as group:
            striking = group.create_task(_strike(scene, fault, load, clock))
            group.create_task(run.open(send_times(load.rate, "poisson", 1.0, seed)))
    finally:
        await callers.close()
    await scene.ready()
    return judge(fault.name, run.answers, striking.result(), may_break_off=fault.ends_answers)


def workload(requests: int, seed: int, mix: Mix = MIX) -> Workload:
    """Questions that no run before has asked."""
    album = Album(generated(PIXELS, seed, time.time_ns()), REUSE)
    album.prepare(requests)
    return Workload(mix, album, seed, time.time_ns())


async def _strike(scene: Scene, fault: Fault, load: Load, clock: Stopwatch) -> Sequence[float]:
    broken = []
    for number in range(load.breaks):
        await asyncio.sleep(load.calm + number * load.every - clock())
        broken.append(clock())
        await fault.strike(scene)
    return broken
