"""One measurement from its settings: find the model, learn the length of words, warm up, then the load itself."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cli.load.arrivals import Pattern, send_times
from cli.load.pictures import Album, from_folder, generated
from cli.load.request import Answer, Caller, Options
from cli.load.run import Bounds, Run
from cli.load.target import Target
from cli.load.warm_up import tokens_per_word, warm_up
from cli.load.workload import Mix, Workload

REFRESH_SECONDS = 0.25
PREPARED = 1000


@dataclass(frozen=True)
class Settings:
    """All that decides a run. `rate` None is a closed loop. `images` is none, generated, or a folder's name."""

    target: Target
    bounds: Bounds
    mix: Mix
    options: Options
    model: str | None = None
    concurrency: int | None = None
    rate: float | None = None
    arrivals: Pattern = "poisson"
    burstiness: float = 1.0
    images: str = "none"
    image_size: int = 448
    reuse: float = 0.0
    warm_up: int = 2
    seed: int = 0
    nonce: int = 0

    @property
    def pictures(self) -> int:
        """About as many as will be needed, of those that were not shown before; too many harm nobody."""
        bounds, rate = self.bounds, self.rate
        expected = rate * bounds.seconds * 1.5 + 10 if rate and bounds.seconds else PREPARED
        return math.ceil(min(expected, bounds.requests or math.inf) * self.mix.image_share * (1 - self.reuse))

    def album(self, nonce: int) -> Album | None:
        """Raises CommandError when the folder cannot be used."""
        if self.images == "none":
            return None
        fresh = generated(self.image_size, self.seed, nonce) if self.images == "generated" else None
        return Album(fresh or from_folder(Path(self.images)), self.reuse)

    def describe(self) -> str:
        """The kind of load, in a line."""
        if self.rate is None:
            return f"closed loop, {self.concurrency or 1} at once"
        shape = f" with shape {self.burstiness:g}" if self.arrivals == "gamma" else ""
        most = f", at most {self.concurrency} in flight" if self.concurrency else ""
        return f"open loop, {self.rate:g} requests/s, {self.arrivals}{shape}{most}"


class Stopwatch:
    """Seconds since it was started."""

    def __init__(self) -> None:
        self._zero = time.perf_counter()

    def restart(self) -> None:
        self._zero = time.perf_counter()

    def __call__(self) -> float:
        return time.perf_counter() - self._zero


class Experiment:
    """After `run`, or after it was cancelled, the fields hold what is known."""

    def __init__(self, settings: Settings, api_key: str | None) -> None:
        self.settings, self._api_key = settings, api_key
        self._clock = Stopwatch()
        self.answers: list[Answer] = []
        self.seconds = 0.0
        self.model = settings.model or ""
        self.served_by = ""
        self.tokens_per_word: float | None = None

    async def run(self) -> None:
        """Raises CommandError when nothing answers."""
        settings, console = self.settings, Console(stderr=True)
        with console.status(f"asking {settings.target} for its model"):
            if settings.model is None:
                self.model, self.served_by = await settings.target.served(self._api_key)
        caller = settings.target.caller(self.model, settings.options, self._clock, self._api_key)
        try:
            with console.status("warming up"):
                await self._warm_up(caller)
            await self._load(caller, console)
        finally:
            await caller.close()

    async def _warm_up(self, caller: Caller) -> None:
        settings = self.settings
        self.tokens_per_word = await tokens_per_word(caller, self._clock)
        # Words and pixels of its own: the load must find nothing of it in a cache.
        asked, at_once = self._workload(settings.nonce + 1, settings.warm_up), settings.concurrency or settings.warm_up
        await warm_up(caller, asked, settings.warm_up, at_once, settings.bounds.timeout, self._clock)

    def _workload(self, nonce: int, requests: int) -> Workload:
        settings = self.settings
        album = settings.album(nonce)
        if album:
            album.prepare(min(requests, PREPARED))
        per_word = self.tokens_per_word or 1.0
        return Workload(settings.mix, album, settings.seed, nonce, tokens_per_word=per_word)

    async def _load(self, caller: Caller, console: Console) -> None:
        settings = self.settings
        with console.status("making the questions"):
            workload = self._workload(settings.nonce, settings.pictures)
        load = Run(caller, workload, settings.bounds, self._clock)
        self.answers = load.answers
        self._clock.restart()
        try:
            with _shown(load, settings.bounds, self._clock, console):
                if settings.rate is None:
                    await load.closed(settings.concurrency or 1)
                else:
                    times = send_times(settings.rate, settings.arrivals, settings.burstiness, settings.seed)
                    await load.open(times, settings.concurrency)
            self.seconds = max((answer.ended or 0.0 for answer in load.answers), default=0.0)
        except asyncio.CancelledError:
            self.seconds = self._clock()
            raise


@contextmanager
def _shown(load: Run, bounds: Bounds, clock: Stopwatch, console: Console) -> Iterator[None]:
    """A line of progress while it runs, where somebody looks."""
    columns = (TextColumn("{task.fields[ended]} answered"), BarColumn(), TextColumn("{task.fields[rest]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=1.0, ended=0, rest="")

        async def refresh() -> None:
            while True:
                ended = len(load.answers) - load.in_flight
                shares = [len(load.answers) / bounds.requests] if bounds.requests else []
                shares += [clock() / bounds.seconds] if bounds.seconds else []
                rest = f"{load.in_flight} in flight" + (f", {load.failed} failed" if load.failed else "")
                progress.update(task, completed=min(1.0, max(shares)), ended=ended - load.failed, rest=rest)
                await asyncio.sleep(REFRESH_SECONDS)

        refreshing = asyncio.get_running_loop().create_task(refresh())
        try:
            yield
        finally:
            refreshing.cancel()
