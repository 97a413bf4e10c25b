"""How soon a client that goes away sets free what worked for it, stage by stage.

    python -m tests.chaos.leaving

The engine: a long answer is left after its first text. The bus: the Q-Former is stopped, so that the work lies there
when the client leaves. The encoder: more pictures at once than it can do in the time, of one client and of many. Each
time is from the client's closing of its connection to the first look at which the stage holds nothing; a look takes
some milliseconds.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from statistics import median

from benchmarks.machine import describe
from cli.load.experiment import Stopwatch
from cli.load.pictures import generated
from cli.load.request import Answer, Failed, Request
from tests.chaos.act import PIXELS
from tests.chaos.callers import Both
from tests.chaos.gauges import busy, pages
from tests.chaos.scene import Scene, scene
from tests.chaos.table import markdown
from ziya import event_loop
from ziya.bus import WORK
from ziya.prompt import Turn

TRIALS = 20
PICTURES, CROWD = 16, 40
GIVE_UP_SECONDS = 10.0
LOOK_SECONDS = 0.002
# Until the gateway has been told what was queued for it. Who leaves in the millisecond before that is worked for once.
REPLY_SECONDS = 0.1
# The engine's own page is brought up to date more often than by default, to be looked at in time.
ENVIRONMENT = {"ZIYA_LLAMA_METRICS_INTERVAL": "0.01"}
Look = Callable[[], bool]


class Trials:
    """Clients of one stack that leave. `times` holds seconds, by stage."""

    def __init__(self, there: Scene) -> None:
        self._scene, self._clock = there, Stopwatch()
        self._pages, self._redis = pages(there), there.client
        self._pictures = generated(PIXELS, 0, time.time_ns())
        self._number = 0
        self.times: dict[str, list[float]] = {}

    async def run(self, trials: int) -> None:
        self._both = Both(self._scene.stack.url, self._scene.stack.addresses["grpc"], self._clock)
        try:
            for _ in range(trials):
                await self._answering()
            for _ in range(trials):
                await self._encoding()
            for _ in range(trials):
                await self._crowd()
            victim = self._scene.process("qformer")
            for _ in range(trials):
                await self._until(lambda: not self._entries() and not self._pending())
                victim.suspend()
                try:
                    await self._queued()
                finally:
                    victim.resume()
        finally:
            self._redis.close()
            await self._both.close()

    async def _answering(self) -> None:
        asking, answer = self._ask(tokens=800, pictures=0)
        await self._until(lambda: bool(answer.pieces), asking)
        await self._leave([asking], engine=self._free("triton"), gateway=self._free("gateway"))

    async def _encoding(self) -> None:
        asking, _ = self._ask(tokens=4, pictures=PICTURES)
        await self._until(lambda: busy(self._pages["vision"], "vision") > 1)
        await self._leave([asking], encoder=self._free("vision"))

    async def _crowd(self) -> None:
        askings = [self._ask(tokens=4, pictures=1)[0] for _ in range(CROWD)]
        await self._until(lambda: busy(self._pages["vision"], "vision") > 1)
        await self._leave(askings, crowd=self._free("vision"))

    async def _queued(self) -> None:
        asking, _ = self._ask(tokens=4, pictures=1)
        await self._until(lambda: self._entries() > 0, asking)
        await asyncio.sleep(REPLY_SECONDS)
        await self._leave([asking], bus=lambda: self._entries() == 0, waiting=self._free("triton"))

    def _ask(self, *, tokens: int, pictures: int) -> tuple[asyncio.Task[None], Answer]:
        images = tuple(next(self._pictures) for _ in range(pictures))
        self._number += 1
        request = Request(self._number, (Turn("user", f"What is this, {time.time_ns()}?", images),), tokens)
        answer = Answer(request, self._clock())
        return asyncio.create_task(self._quietly(request, answer)), answer

    async def _quietly(self, request: Request, answer: Answer) -> None:
        try:
            await self._both.ask(request, answer)
        except Failed as failure:
            raise AssertionError(f"a request that should have been left had failed: {failure}") from failure

    async def _leave(self, askings: list[asyncio.Task[None]], **stages: Look) -> None:
        left = time.perf_counter()
        for asking in askings:
            asking.cancel()
        await asyncio.gather(*askings, return_exceptions=True)
        waiting = dict(stages)
        while waiting:
            for name, free in list(waiting.items()):
                if await asyncio.to_thread(free):
                    self.times.setdefault(name, []).append(time.perf_counter() - left)
                    del waiting[name]
            await asyncio.sleep(LOOK_SECONDS)
            if time.perf_counter() - left > GIVE_UP_SECONDS:
                raise AssertionError(f"{', '.join(waiting)}: not free after {GIVE_UP_SECONDS:g} s")

    async def _until(self, look: Look, asking: asyncio.Task[None] | None = None) -> None:
        async with asyncio.timeout(GIVE_UP_SECONDS):
            while not await asyncio.to_thread(look):
                if asking is not None and asking.done():
                    asking.result()
                    raise AssertionError("the answer was complete before its client could leave")
                await asyncio.sleep(LOOK_SECONDS)

    def _free(self, program: str) -> Look:
        return lambda: not busy(self._pages[program], program)

    def _entries(self) -> int:
        return int(self._redis.xlen(WORK))

    def _pending(self) -> int:
        return int(self._redis.xpending(WORK, "qformer")["pending"])


NAMES = {
    "gateway": "the gateway's place, answer under way",
    "engine": "the engine's place, answer under way",
    "encoder": f"the encoder, one client with {PICTURES} pictures",
    "crowd": f"the encoder, {CROWD} clients that leave together",
    "bus": "the work on the bus, Q-Former stopped",
    "waiting": "the engine's wait for visual tokens",
}


def main() -> None:
    sys.stdout.write(f"{describe()}\n\n")
    with scene(env=ENVIRONMENT) as there:
        trials = Trials(there)
        event_loop.run(trials.run(TRIALS))
    rows = [
        [NAMES[name], str(len(times)), *(f"{1000 * value:.0f}" for value in (median(times), max(times)))]
        for name, times in trials.times.items()
    ]
    sys.stdout.write(markdown(["free again", "clients", "median ms", "slowest ms"], rows) + "\n")


if __name__ == "__main__":
    main()
