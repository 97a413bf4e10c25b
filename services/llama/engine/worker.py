"""The engine's thread: takes requests at the border of a step, drops the unwanted, steps the model, delivers.

Everything behind `post` runs on this one thread; other threads only add to the inbox, under the lock, or set a
sequence's `cancelled` flag. A step that fails as a whole ends the requests that were in it, and the thread
goes on: the next request may be a good one.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter

import torch

from services.llama.engine.adapters import Adapters
from services.llama.engine.choice import Chosen
from services.llama.engine.delivery import Delivery
from services.llama.engine.runner import Runner
from services.llama.engine.scheduler import Scheduler
from services.llama.engine.seam import Stats
from services.llama.engine.sequence import Sequence
from services.llama.engine.stream import NativeStream
from ziya.errors import Cancelled, DeadlineExceeded, Internal, InvalidRequest, Overloaded, Unavailable, ZiyaError

log = logging.getLogger(__name__)


class Worker:
    """Runs until `stop`. At most `capacity` requests are inside, running and waiting together."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        adapters: Adapters,
        delivery: Delivery,
        *,
        capacity: int,
        threads: int,
    ) -> None:
        self._runner, self._scheduler, self._adapters, self._delivery = runner, scheduler, adapters, delivery
        self._capacity, self._threads = capacity, threads
        self._wake = threading.Condition()
        self._inbox: list[Sequence] = []
        self._streams: dict[Sequence, NativeStream] = {}
        self._closing = self._stopping = False
        self._drained = threading.Event()
        self._count: Counter[str] = Counter()
        self._step_seconds = 0.0
        self._first_tokens: list[float] = []
        self._thread = threading.Thread(target=self._run, name="llama-engine", daemon=True)
        self._thread.start()

    def post(self, sequence: Sequence, stream: NativeStream) -> None:
        """From any thread. Raises Overloaded or Unavailable."""
        with self._wake:
            if self._closing:
                raise Unavailable("the engine is shutting down")
            if len(self._streams) >= self._capacity:
                self._count["rejected"] += 1
                raise Overloaded("the engine's waiting queue is full")
            self._streams[sequence] = stream
            self._inbox.append(sequence)
            self._wake.notify()

    def stats(self) -> Stats:
        running = len(self._scheduler.running)
        waiting = max(0, len(self._streams) - running)
        return Stats(
            running=running,
            waiting=waiting,
            slots=self._scheduler.slots,
            blocks=self._scheduler.pool.count,
            blocks_used=self._scheduler.pool.used,
            preempted=self._scheduler.preempted,
            step_seconds=self._step_seconds,
            **self._count,
        )

    def first_token_seconds(self) -> list[float]:
        taken, self._first_tokens = self._first_tokens, []
        return taken

    def stop(self, drain_seconds: float) -> None:
        """Blocks: refuses what is new, waits so long for the rest, ends it, and joins the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._drained.wait(drain_seconds)
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            while self._take_inbox():
                try:
                    self._step()
                except Exception:  # a worker loop: one bad step must not end the service
                    log.exception("an engine step failed")
                    error = Internal("the engine failed in the step that this request was part of")
                    self._fail(self._scheduler.abandon(), error)
                self._delivery.send()
        self._fail([*self._scheduler.abandon(), *self._scheduler.waiting], Unavailable("the engine is shutting down"))
        self._delivery.send()

    def _take_inbox(self) -> bool:
        """Sleeps while there is nothing to do. False when the thread is to end."""
        with self._wake:
            while not (self._inbox or self._stopping) and self._scheduler.idle:
                if self._closing:
                    self._drained.set()
                self._wake.wait()
            self._scheduler.waiting.extend(self._inbox)
            self._inbox.clear()
            return not self._stopping

    def _step(self) -> None:
        self._drop_unwanted()
        began = time.perf_counter()
        rows = self._scheduler.step(began)
        if not rows:
            return
        chosen = dict(self._runner.step(rows))
        now = time.perf_counter()
        for sequence, count in rows:
            drafted, given = len(sequence.drafts), chosen.get(sequence, [])
            right = len(given) - 1 if drafted else 0
            self._append(sequence, given, now)
            self._scheduler.computed(sequence, count - drafted + right)
            self._count["drafted"] += drafted
            self._count["accepted"] += right
        self._count["steps"] += 1
        self._step_seconds += now - began
        self._deliver(list(chosen), now)

    def _append(self, sequence: Sequence, chosen: list[Chosen], now: float) -> None:
        if chosen and not sequence.ids:
            self._count["prompt_tokens"] += sequence.length
            self._count["cached_tokens"] += sequence.cached
            self._first_tokens.append(now - sequence.submitted)
        for token, logprob in chosen:
            sequence.append(token, logprob, now)
            self._count["tokens"] += 1
            if sequence.finish_reason or sequence.choice.error:
                break

    def _deliver(self, sequences: list[Sequence], now: float) -> None:
        pairs = [(sequence, self._streams[sequence]) for sequence in sequences]
        self._delivery.gather((pair for pair in pairs if not pair[0].finish_reason), len(pairs), now)
        for sequence, stream in pairs:
            if sequence.choice.error:
                self._drop(sequence, "failed", InvalidRequest(sequence.choice.error))
            elif sequence.finish_reason and (last := sequence.take(now)):
                self._delivery.put(stream, last)
                self._scheduler.remove(sequence)
                self._leave(sequence, "finished")

    def _drop_unwanted(self) -> None:
        now = time.time()
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            if sequence.cancelled:
                self._drop(sequence, "cancelled", Cancelled("the request was cancelled"))
            elif now >= sequence.deadline:
                self._drop(sequence, "expired", DeadlineExceeded("the deadline passed before the answer was complete"))

    def _drop(self, sequence: Sequence, outcome: str, error: ZiyaError) -> None:
        self._count["saved"] += math.isnan(sequence.admitted)
        self._scheduler.remove(sequence)
        self._delivery.put(self._leave(sequence, outcome), error)

    def _leave(self, sequence: Sequence, outcome: str) -> NativeStream:
        self._count[outcome] += 1
        self._adapters.leave(sequence.adapter)
        with self._wake:
            return self._streams.pop(sequence)

    def _fail(self, sequences: list[Sequence], error: ZiyaError) -> None:
        for sequence in sequences:
            self._delivery.put(self._leave(sequence, "failed"), error)
